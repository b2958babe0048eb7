"""MegaRL: reinforcement learning for language models on Megatron-Core and vLLM.

Public names are looked up when they are first used, so that `import megarl` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megarl.config.load import load_config
    from megarl.experience.buffer import ExperienceBuffer
    from megarl.experience.sample import Sample
    from megarl.observe.logger import Logger
    from megarl.rollout.servers.server import RolloutServer
    from megarl.rollout.servers.worker import RolloutWorker
    from megarl.trainer import PPOTrainer

__version__ = "0.1.0"
__all__ = [
    "ExperienceBuffer",
    "Logger",
    "PPOTrainer",
    "RolloutServer",
    "RolloutWorker",
    "Sample",
    "__version__",
    "load_config",
]

_HOMES = {
    "ExperienceBuffer": "megarl.experience.buffer",
    "RolloutServer": "megarl.rollout.servers.server",
    "RolloutWorker": "megarl.rollout.servers.worker",
    "Sample": "megarl.experience.sample",
    "Logger": "megarl.observe.logger",
    "PPOTrainer": "megarl.trainer",
    "load_config": "megarl.config.load",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'megarl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
