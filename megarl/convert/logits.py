"""The same tokens through the Hugging Face model and through Megatron-Core on the checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megarl.layout import ModelShape
from megarl.mesh.layout import MeshLayout
from megarl.mesh.role_mesh import GroupFactory, RoleMesh
from megarl.models.dist_checkpoint import load_role
from megarl.models.engine import MegatronEngine
from megarl.runtime.device import device

NUM_TOKENS = 16
LIMIT = 1e-3
"""Of the difference, as a share of the largest logit: fp32 arithmetic in another order."""
TIMEOUT_S = 600.0


class Difference(NamedTuple):
    """How far two sets of logits (or values) are apart."""

    largest: float
    scale: float
    """The largest of Hugging Face's."""

    @property
    def acceptable(self) -> bool:
        """Whether the order of fp32 additions explains it."""
        return self.largest <= LIMIT * max(self.scale, 1.0)


def compare_logits(
    folder: Path,
    checkpoint: Path,
    hf: Mapping[str, Any],
    shape: ModelShape,
    dtype: torch.dtype = torch.float32,
) -> Difference:
    """Largest difference of the logits, or values, of a few tokens; both models in fp32.

    folder: a Hugging Face folder; checkpoint: the folder with the torch_dist files; dtype: what the
    weights of both are rounded to, where a conversion did so. torch's default process group must
    exist and have one rank. One model is in memory at a time.
    """
    tokens = torch.arange(NUM_TOKENS)[None] * 31 % shape.vocab_size
    ours = _megatron(checkpoint, hf, shape, tokens, dtype)
    gc.collect()
    theirs = _hugging_face(folder, shape, tokens, dtype)
    return Difference(float((ours - theirs).abs().max()), float(theirs.abs().max()))


@torch.no_grad()
def _hugging_face(folder: Path, shape: ModelShape, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 [1, s, V] logits, or [1, 1, 1] the value of the last token."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if shape.scalar_head else AutoModelForCausalLM
    model = kind.from_pretrained(str(folder), dtype=torch.float32)
    _round(model, dtype)
    logits: Tensor = model(tokens).logits
    return logits if shape.scalar_head is None else logits[:, None]


@torch.no_grad()
def _megatron(
    checkpoint: Path,
    hf: Mapping[str, Any],
    shape: ModelShape,
    tokens: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """What `_hugging_face` returns, from the checkpoint as Megatron-Core reads it."""
    mesh = RoleMesh("verify", MeshLayout(), GroupFactory(TIMEOUT_S))
    engine = MegatronEngine(hf, shape, mesh, torch.float32)
    load_role(engine, checkpoint)
    model: Any = engine.chunks[0]
    _round(model, dtype)
    with mesh.activate():
        at = torch.arange(tokens.shape[1])[None]
        hidden = GPTModel.forward(model, tokens.to(device()), at.to(device()), None)
    hidden = hidden.transpose(0, 1)
    if shape.scalar_head is not None:
        return model.value_head(hidden[:, -1:]).cpu()
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return (hidden @ weight[: shape.vocab_size].T).cpu()


def _round(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
