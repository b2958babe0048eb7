"""Weights from the actor's ranks to vLLM servers in processes of their own, shard to shard."""
