"""Jobs about the process itself."""

from __future__ import annotations

import importlib
import sys

import torch
from worker import Rank

from megarl.runtime import megatron_cpu


def who_sees_the_stand_in(rank: Rank) -> list[str]:
    """What is not as it should be, of all modules that are loaded."""
    importlib.import_module("megatron.core.fusions.fused_softmax")  # one that comes late
    wrong = []
    for name, module in list(sys.modules.items()):
        seen = vars(module).get("torch")
        stands_in = isinstance(seen, megatron_cpu._Proxy)
        ours = name == "megatron" or name.startswith("megatron.")
        if (ours and seen is torch) or (stands_in and not ours):
            wrong.append(name)
    core = importlib.import_module("megatron.core.utils")
    if core.torch.cuda.current_device() != torch.device("cpu"):
        wrong.append("megatron's torch.cuda.current_device")
    if core.torch.empty(2, device="cuda").device.type != "cpu":
        wrong.append("megatron's torch.empty")
    try:
        torch.empty(2, device="cuda")
        wrong.append("our torch.empty")
    except (AssertionError, RuntimeError):
        pass
    if torch.zeros(1).type() != "torch.FloatTensor":
        wrong.append("our Tensor.type")
    return wrong
