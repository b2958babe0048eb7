"""The ways that `megarl bench reshard` compares; each brings the same weights to the same ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.bench.reshard_parts import Way, World
from megarl.layout import Piece, Placement, Transfer, megatron_parameters, megatron_placement
from megarl.layout.rules import hf_tensors
from megarl.mesh.layout import MeshLayout, megatron_slice
from megarl.mesh.role_mesh import GroupFactory, RoleMesh
from megarl.models.engine import MegatronEngine
from megarl.reshard.executor import DATA_TAG, Resharder, SyncReport
from megarl.weights.load import strided_view

PACK_BYTES = 64 << 20
"""Of one broadcast of packed tensors."""


def all_ways(world: World, buffer_bytes: int) -> dict[str, Way]:
    """Name -> way, in the order of the table."""
    ours, report = world.resharder, world.resharder.run(verify=False)
    sequence = Resharder(
        world.universe,
        ours.plan,
        world.actor.parameters(),
        dict(world.engine.begin_load()),
        wire_dtype=world.dtype,
        buffer_bytes=buffer_bytes,
        overlap=False,
    )
    exchange = RawExchange(world, report)
    gather = Gather(world)
    received = report.bytes_received
    return {
        "this engine": Way(lambda: ours.run(verify=False), received, report.buffer_bytes),
        "this engine, digests": Way(lambda: ours.run(), received, report.buffer_bytes),
        "this engine, in sequence": Way(
            lambda: sequence.run(verify=False), received, report.buffer_bytes
        ),
        "Megatron-Core's resharding*": MegatronReshard(world).way(),
        "gather, load_weights": Way(gather.run, gather.received_bytes(everywhere=False)),
        "packed broadcast, load_weights": Way(
            gather.run_packed, gather.received_bytes(everywhere=True)
        ),
        "raw exchange": Way(exchange.wire, received),
        "floor": Way(exchange.floor, received),
    }


class RawExchange:
    """The bytes of the plan from ready buffers, and a memcpy of what is packed or stays here."""

    def __init__(self, world: World, report: SyncReport) -> None:
        self._universe = world.universe
        plan, rank, dtype = world.resharder.plan, world.universe.rank, world.dtype
        self._out = _buffers(plan.sends(rank), "dst", dtype)
        self._into = _buffers(plan.receives(rank), "src", dtype)
        moved = report.bytes_buffered + report.bytes_local
        self._from, self._to = (torch.ones(moved, dtype=torch.uint8) for _ in range(2))

    def wire(self) -> None:
        """One message per peer and direction."""
        works = [self._universe.receive(b, peer, DATA_TAG) for peer, b in self._into.items()]
        works += [self._universe.send(b, peer, DATA_TAG) for peer, b in self._out.items()]
        for work in works:
            work.wait()

    def floor(self) -> None:
        """The exchange, then the copies."""
        self.wire()
        self._to.copy_(self._from)


def _buffers(
    transfers: Sequence[Transfer], peer_side: str, dtype: torch.dtype
) -> dict[int, Tensor]:
    """Peer -> as many bytes as go to it, or come from it."""
    sizes: defaultdict[int, int] = defaultdict(int)
    for transfer in transfers:
        sizes[getattr(transfer, peer_side)] += transfer.box.numel * dtype.itemsize
    return {peer: torch.ones(size, dtype=torch.uint8) for peer, size in sizes.items()}


class Gather:
    """What trainers do without a plan: full Hugging Face tensors, then vLLM's own load_weights."""

    def __init__(self, world: World) -> None:
        self._world, self._mesh = world, world.actor.mesh
        self._layout: MeshLayout = world.run.actor.layout
        self._shape = world.run.actor.shape
        self._hf = hf_tensors(self._shape)
        self._found: dict[tuple[int, int], dict[str, list[Piece]]] = {}
        for stage in range(self._layout.pp):
            for tp in range(self._layout.tp):
                by_buffer = self._found.setdefault((stage, tp), defaultdict(list))
                for piece in self._pieces(stage, tp):
                    by_buffer[piece.buffer].append(piece)

    def run(self) -> None:
        """Parameter by parameter: broadcast over the stages, gather over the tensor ranks, load."""
        self._load(self._full_tensors())

    def run_packed(self) -> None:
        """One rank of each stage gathers its tensors and broadcasts them in packs to all."""
        self._load(self._broadcast_packs())

    def received_bytes(self, *, everywhere: bool) -> int:
        """Of this rank: what it lacks of every full tensor; or all but its own broadcasts."""
        layout, at = self._layout, self._mesh.at
        stages = [self._stage_elements(stage) for stage in range(layout.pp)]
        held = sum(p.numel() for p in self._world.actor.parameters().values())
        others = sum(size for stage, size in enumerate(stages) if stage != at.pp)
        own = stages[at.pp] - held
        if everywhere:  # gathered over tensor ranks first, then sent whole
            broadcasts = 0 if self._is_source(at.pp) else stages[at.pp]
            return (own + broadcasts + others) * self._world.dtype.itemsize
        # Other stages' shards come from the stage, the rest of them from the tensor ranks.
        return (own + others) * self._world.dtype.itemsize

    def _load(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        self._world.engine._model.load_weights(tensors)

    def _full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        live, groups = self._world.actor.parameters(), self._mesh.groups
        for stage in range(self._layout.pp):
            source = dist.get_global_rank(groups.pp, stage)
            for buffer, shape in self._parameters(stage).items():
                mine = live[buffer].data if stage == self._mesh.at.pp else self._empty(shape)
                if self._layout.pp > 1:
                    dist.broadcast(mine.view(torch.uint8), src=source, group=groups.pp)
                yield from self._full(stage, buffer, self._gathered(mine))

    def _broadcast_packs(self) -> Iterator[tuple[str, Tensor]]:
        live = self._world.actor.parameters()
        for stage in range(self._layout.pp):
            source, here = self._layout.rank(pp=stage), stage == self._mesh.at.pp
            pack: list[tuple[str, Tensor]] = []
            size = 0
            for buffer in self._parameters(stage):
                shards = self._gathered(live[buffer].data) if here else None
                for name, tensor in self._full(stage, buffer, shards):
                    pack.append((name, tensor))
                    size += tensor.nbytes
                if size >= PACK_BYTES:
                    yield from self._broadcast(pack, source)
                    pack, size = [], 0
            yield from self._broadcast(pack, source)

    def _broadcast(
        self, pack: list[tuple[str, Tensor]], source: int
    ) -> Iterator[tuple[str, Tensor]]:
        if not pack:
            return
        flat = torch.cat([tensor.reshape(-1) for _, tensor in pack])
        dist.broadcast(flat.view(torch.uint8), src=source)
        for (name, tensor), part in zip(
            pack, flat.split([t.numel() for _, t in pack]), strict=True
        ):
            yield name, part.view(tensor.shape)

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        if self._layout.tp == 1:
            return [mine]
        shards = [torch.empty_like(mine) for _ in range(self._layout.tp)]
        dist.all_gather(
            [shard.view(torch.uint8) for shard in shards], mine.view(torch.uint8),
            group=self._mesh.groups.tp,
        )  # fmt: skip
        return shards

    def _full(
        self, stage: int, buffer: str, shards: list[Tensor] | None
    ) -> Iterator[tuple[str, Tensor]]:
        """The Hugging Face tensors of one parameter; empty ones without shards."""
        full: dict[str, Tensor] = {}
        for tp in range(self._layout.tp):
            for piece in self._found[stage, tp].get(buffer, ()):
                if piece.tensor not in full:
                    full[piece.tensor] = self._empty(self._hf[piece.tensor])
                if shards is not None:
                    index = tuple(map(slice, piece.box.lo, piece.box.hi))
                    full[piece.tensor][index] = strided_view(shards[tp], piece)
        yield from full.items()

    def _pieces(self, stage: int, tp: int) -> Placement:
        slice_ = megatron_slice(self._layout, self._layout.rank(tp=tp, pp=stage))
        return megatron_placement(self._shape, slice_, padded_vocab=False)

    def _parameters(self, stage: int) -> dict[str, tuple[int, ...]]:
        slice_ = megatron_slice(self._layout, self._layout.rank(pp=stage))
        return megatron_parameters(self._shape, slice_)

    def _stage_elements(self, stage: int) -> int:
        pieces = {
            (piece.tensor, piece.box)
            for tp in range(self._layout.tp)
            for piece in self._pieces(stage, tp)
        }
        return sum(box.numel for _, box in pieces)

    def _is_source(self, stage: int) -> bool:
        return bool(self._world.universe.rank == self._layout.rank(pp=stage))

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self._world.dtype)


class MegatronReshard:
    """Megatron-Core's planner and copy list over gloo, onto Megatron models in vLLM's layout.

    Its CUDA streams are stand-ins on a CPU. What it writes is Megatron's layout, not vLLM's.
    """

    def __init__(self, world: World) -> None:
        from megatron.core.resharding.copy_services.gloo_copy_service import GlooCopyService

        run, tp = world.run, world.run.replica.tp
        layout = MeshLayout(tp=tp, dp=len(run.rollout_ranks) // tp)
        mesh = RoleMesh("target", layout, GroupFactory(600.0))
        self._target = MegatronEngine(run.actor.hf, run.actor.shape, mesh, world.dtype)
        self._source, self._world = world.actor, world
        self._service: Any = GlooCopyService()

    def way(self) -> Way:
        """The way, with what its plan receives."""
        self.run()
        plan: Any = self._target.chunks[0]._cached_reshard_plan
        rank, received = self._world.universe.rank, 0
        parameters = dict(self._target.chunks[0].named_parameters())
        for op in plan.recv_ops:
            if op.peer_rank != rank:
                received += parameters[op.param_name].data[op.my_slice].nbytes
        return Way(self.run, received)

    def run(self) -> None:
        """Plan at the first call, then copy."""
        from megatron.core.resharding.refit import reshard_model_weights

        with self._source.mesh.activate():
            reshard_model_weights(self._source.chunks, self._target.chunks, self._service)
