"""What vLLM calls in each of its processes, through the entry point `vllm.general_plugins`."""

from __future__ import annotations

BACKEND = "megarl"
"""The name that users give to `--weight-transfer-config`."""


def register() -> None:
    """Make the backend known to vLLM; it is loaded where a server asks for it.

    A server on a CPU that takes weights this way keeps its linear weights, which vLLM would drop
    once they are packed; any other is left as it is.
    """
    try:
        from vllm.distributed.weight_transfer.factory import (
            WeightTransferEngineFactory,
            WeightTransferTrainerFactory,
        )
    except ImportError:
        return  # an older vLLM: it says itself that it has no such backend, where one asks for it
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(
        BACKEND, "megarl.transfer.worker", "MegarlTransferEngine"
    )
    WeightTransferTrainerFactory.register_engine(
        BACKEND, "megarl.transfer.trainer_engine", "MegarlTrainerEngine"
    )
    from megarl.runtime.device import on_cuda

    if not on_cuda():
        from megarl.rollout.vllm_cpu import keep_linear_weights

        keep_linear_weights(takes_weights_from_here)


def takes_weights_from_here() -> bool:
    """Whether the model that is being loaded in this process belongs to such a server."""
    from vllm.config import get_current_vllm_config

    config = get_current_vllm_config().weight_transfer_config
    return config is not None and config.backend == BACKEND
