"""Where every weight lives, as boxes of the full Hugging Face tensors, and plans between layouts.

Pure: no process group, no engine, no files, no torch.
"""

from megarl.layout.box import Box
from megarl.layout.files_side import file_placement
from megarl.layout.megatron_side import MegatronSlice, megatron_parameters, megatron_placement
from megarl.layout.placement import Piece, Placement, Recording
from megarl.layout.plan import Plan, Transfer, make_plan
from megarl.layout.replica import ReplicaLayout, VllmSlice
from megarl.layout.rules import ModelShape, hf_tensors, model_shape_from_hf, with_scalar_head
from megarl.layout.vllm_side import vllm_parameters, vllm_placement

__all__ = [
    "Box",
    "MegatronSlice",
    "ModelShape",
    "Piece",
    "Placement",
    "Plan",
    "Recording",
    "ReplicaLayout",
    "Transfer",
    "VllmSlice",
    "file_placement",
    "hf_tensors",
    "make_plan",
    "megatron_parameters",
    "megatron_placement",
    "model_shape_from_hf",
    "vllm_parameters",
    "vllm_placement",
    "with_scalar_head",
]
