"""The same tokens through Megatron-Core and vLLM as their own examples use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.utils import get_model_config

from megarl.config.schema import Config
from megarl.mesh.role_mesh import RoleMesh
from megarl.mesh.run_plan import RolePlan
from megarl.models.optimizer import Trainer
from megarl.models.transformer_config import torch_dtype, transformer_config
from megarl.train.run import Run
from megarl.types import Rollout


class BareMegatron:
    """A GPTModel with Megatron's own local spec, attention and vocab-parallel cross-entropy."""

    def __init__(self, role: RolePlan, config: Config, mesh: RoleMesh) -> None:
        self._mesh = mesh
        with mesh.activate():
            dtype = torch_dtype(config.actor.model.dtype)
            megatron = transformer_config(role.hf, role.shape, mesh.layout, dtype)
            model = GPTModel(
                config=megatron,
                transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
                vocab_size=role.shape.padded_vocab_size,
                max_sequence_length=512,
                position_embedding_type="rope",
                pg_collection=mesh.groups,
            ).to(dtype)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter.data, std=0.02)
            self._trainer = Trainer([model], mesh, config.actor.optimizer, 1)

    def step(self, rollouts: Sequence[Rollout]) -> None:
        """Forward, backward and Adam on the rollouts' tokens, as next-token training."""
        rows = [list(r.request.prompt.token_ids) + list(r.response_ids) for r in rollouts]
        longest = max(map(len, rows))
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        positions = torch.arange(longest).expand_as(tokens)

        def forward_step(data: Any, model: torch.nn.Module) -> tuple[Any, Any]:
            losses = model(tokens, positions, None, labels=tokens.roll(-1, 1))
            return losses, lambda out: (out.mean(), {"loss": out.detach().mean()})

        model = self._trainer.chunks[0]
        with self._mesh.activate():
            self._trainer.zero_grad()
            get_forward_backward_func(1, None)(
                forward_step_func=forward_step,
                data_iterator=iter([None]),
                model=model,
                num_microbatches=1,
                seq_length=longest,
                micro_batch_size=len(rows),
                p2p_communicator=P2PCommunicator(
                    pp_group=self._mesh.groups.pp, config=get_model_config(model)
                ),
                pg_collection=self._mesh.groups,
            )
            self._trainer.step()


def bare_generate(run: Run, rollouts: Sequence[Rollout]) -> None:
    """vLLM's own LLM.generate on the same prompts with the same seeds."""
    from vllm import SamplingParams

    llm: Any = run.rollout.engine._llm  # type: ignore[attr-defined]
    prompts = [{"prompt_token_ids": list(r.request.prompt.token_ids)} for r in rollouts]
    params = [
        SamplingParams(
            temperature=run.sampling.temperature,
            max_tokens=run.sampling.max_response_length,
            stop_token_ids=list(run.sampling.stop_token_ids),
            seed=r.request.seed,
            logprobs=0,
            detokenize=False,
        )
        for r in rollouts
    ]
    llm.reset_prefix_cache()
    llm.generate(prompts, params, use_tqdm=False)
