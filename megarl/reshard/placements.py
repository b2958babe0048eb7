"""Where the weights of a whole run lie: the actor's on its mesh, vLLM's in its replicas."""

from __future__ import annotations

from collections.abc import Sequence

from megarl.layout import (
    ModelShape,
    Placement,
    ReplicaLayout,
    megatron_placement,
    vllm_placement,
)
from megarl.mesh.layout import LayerNorm, MeshLayout, megatron_slice


def actor_placements(
    shape: ModelShape,
    layout: MeshLayout,
    ranks: Sequence[int],
    layernorm: LayerNorm = "local",
    *,
    padded_vocab: bool = True,
) -> dict[int, Placement]:
    """Universe rank -> what it holds; ranks: the role's pool. Equal ranks share one object."""
    return {
        rank: megatron_placement(
            shape, megatron_slice(layout, index, layernorm), padded_vocab=padded_vocab
        )
        for index, rank in enumerate(ranks)
    }


def rollout_placements(
    shape: ModelShape, replica: ReplicaLayout, ranks: Sequence[int]
) -> dict[int, Placement]:
    """Universe rank -> what its part of a replica needs."""
    return {
        rank: vllm_placement(shape, replica.slice_of(index)) for index, rank in enumerate(ranks)
    }
