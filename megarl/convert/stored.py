"""Which rows of which Hugging Face tensors make up each tensor of a torch_dist checkpoint.

Megatron-Core stores a layer stack as one tensor per parameter: a leading axis for the layer, a
second one for the expert, then the parameter as one rank without parallelism would hold it. A
`Chunk` is some rows of one entry of such a stack, the unit that is read, written and digested; a
`Piece` of it is a run of rows of one Hugging Face tensor.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megarl.layout import MegatronSlice, ModelShape, megatron_parameters, megatron_placement

CHUNK_NUMEL = 32 << 20
"""Elements of a chunk at most (one row, if that is longer): what a worker holds at a time."""
NORM_OF_EXPERTS = "decoder.layers.pre_mlp_layernorm.weight"
LOCAL_NORM_OF_EXPERTS = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
"""The same norm, as TransformerEngine's layers and as Megatron's local layers store it."""
STATEFUL = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "mlp.experts.experts.linear_fc1",
    "mlp.experts.experts.linear_fc2",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "pre_mlp_layernorm",
)
"""Modules of a layer that store an `_extra_state` where they have a weight."""
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(linear_fc[12]\.weight)(\d+)")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [lo, hi) of a Hugging Face tensor, at `row` of the Megatron tensor's rows."""

    tensor: str
    lo: int
    hi: int
    row: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter of one layer (and expert), whole."""

    key: str
    """Key in the checkpoint; the stack's, without a layer number."""
    index: tuple[int, ...]
    """(layer,), (layer, expert) or ()."""
    counts: tuple[int, ...]
    """Sizes of the axes of `index`."""
    shape: tuple[int, ...]
    """Shape without those axes; rows of the padded vocabulary included."""
    pieces: tuple[Piece, ...]
    """In the order of `row`; what they leave out is padding, 0."""
    gated: bool
    """Whether the first half of the rows is the gate and the second the up projection."""

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return prod(self.shape[1:])

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the whole stack in the checkpoint."""
        return (*self.counts, *self.shape)

    @property
    def other_keys(self) -> tuple[str, ...]:
        """Keys under which other layer specs store the same tensor."""
        return (LOCAL_NORM_OF_EXPERTS,) if self.key == NORM_OF_EXPERTS else ()

    def chunks(self) -> Iterator[Chunk]:
        """The rows, cut into chunks."""
        step = max(CHUNK_NUMEL // self.columns, 1)
        for lo in range(0, self.shape[0], step):
            yield Chunk(self, lo, min(lo + step, self.shape[0]))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [lo, hi) of an entry."""

    entry: Entry
    lo: int
    hi: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it starts in the whole stack."""
        return (*self.entry.index, self.lo, *(0 for _ in self.entry.shape[1:]))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape in the whole stack."""
        return (*(1 for _ in self.entry.index), self.hi - self.lo, *self.entry.shape[1:])

    @property
    def numel(self) -> int:
        """Its elements."""
        return (self.hi - self.lo) * self.entry.columns

    def pieces(self) -> tuple[Piece, ...]:
        """The entry's pieces cut to these rows; `row` counts from the chunk's first row."""
        found = []
        for piece in self.entry.pieces:
            start = max(piece.row, self.lo)
            end = min(piece.row + piece.hi - piece.lo, self.hi)
            if start < end:
                lo = piece.lo + start - piece.row
                found.append(Piece(piece.tensor, lo, lo + end - start, start - self.lo))
        return tuple(found)


def entries(shape: ModelShape) -> tuple[Entry, ...]:
    """Every parameter of a model, in the order of the forward pass."""
    whole = MegatronSlice(layernorm="te")
    pieces: defaultdict[str, list[Piece]] = defaultdict(list)
    parameters = megatron_parameters(shape, whole)
    for piece in megatron_placement(shape, whole, padded_vocab=False):
        row = piece.offset // prod(parameters[piece.buffer][1:])
        pieces[piece.buffer].append(Piece(piece.tensor, piece.box.lo[0], piece.box.hi[0], row))
    found = []
    for buffer, size in parameters.items():
        key, index = _key(buffer.removeprefix("0/"))
        counts = (shape.num_layers, shape.num_experts)[: len(index)]
        gated = key.endswith("linear_fc1.weight")
        found.append(Entry(key, index, counts, size, tuple(pieces[buffer]), gated))
    return tuple(found)


def _key(name: str) -> tuple[str, tuple[int, ...]]:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return name, ()
    expert = _EXPERT.fullmatch(layer[2])
    if expert is None:
        return f"decoder.layers.{layer[2]}", (int(layer[1]),)
    return f"decoder.layers.mlp.experts.experts.{expert[1]}", (int(layer[1]), int(expert[2]))


def objects(shape: ModelShape) -> tuple[str, ...]:
    """Keys of the `_extra_state` objects that layers ask for; in bf16 and fp32 they say nothing.

    Local layers ask for those of linear layers, TransformerEngine's for those of norms and of the
    core attention as well.
    """
    found = ["decoder.final_layernorm._extra_state/shard_0_1"]
    for layer in range(shape.num_layers):
        at = f"_extra_state/shard_{layer}_{shape.num_layers}"
        found.append(f"decoder.layers.self_attention.core_attention.{at}")
    for entry in entries(shape):
        module, _, parameter = entry.key.rpartition(".")
        if parameter == "weight" and module.removeprefix("decoder.layers.") in STATEFUL:
            at = ".".join(map(str, entry.index)) + "_" + ".".join(map(str, entry.counts))
            found.append(f"{module}._extra_state/shard_{at}")
    return tuple(found)
