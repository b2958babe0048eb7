"""`megarl plan reshard CONFIG`: what a weight sync will cost, without GPUs and without weights."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megarl.errors import ConfigError

LINKS = ("same_gpu", "in_node", "between_nodes")
GB = 1e9


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `megarl plan reshard`."""
    parser = argparse.ArgumentParser(
        prog="megarl plan reshard",
        description="Bytes and seconds of a weight sync, by kind of link, from the config and the "
        "model's config.json alone; beside a full gather and vLLM's own many-to-many transfer.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of a training run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="as for `megarl train`")
    parser.add_argument(
        "--ranks-per-node", type=int, default=8, metavar="N", help="default: %(default)s"
    )
    for name in LINKS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, metavar="GB/s",
            help="what one rank moves over such a link, in one direction (default: an H100 node's)",
        )  # fmt: skip
    parser.add_argument("--rank", type=int, default=0, help="the rank whose own plan is timed")
    parser.add_argument("--transfers", action="store_true", help="print that rank's transfers too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Plan, print, and write the JSON where it is asked for."""
    parsed = build_parser().parse_intermixed_args(list(arguments))
    if parsed.ranks_per_node < 1:
        raise ConfigError(f"--ranks-per-node is {parsed.ranks_per_node}: give 1 or more")
    if parsed.json is not None and (
        parsed.json.is_dir() or not parsed.json.absolute().parent.is_dir()
    ):
        raise ConfigError(f"--json {parsed.json}: give a file in a folder that exists")
    given = {name: value for name in LINKS if (value := getattr(parsed, name)) is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}: give more than 0 GB/s")
    found = _plan(parsed, given)
    sys.stdout.write(_report(found))
    if parsed.transfers:
        sys.stdout.write("\n" + found.table + "\n")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(_as_json(found), indent=2) + "\n")
    return 0


@dataclass(frozen=True)
class Found:
    """Everything that is said about one plan."""

    head: str
    links: Any
    schemes: Mapping[str, Any]
    """Name -> Cost."""
    totals: Mapping[int, Any]
    """Rank -> Totals, elements."""
    itemsize: int
    aliased: float
    """Share of the rollout's weights that lie where they are needed."""
    rank: int
    plan_s: float
    digest: str
    table: str


def _plan(parsed: argparse.Namespace, links: Mapping[str, float]) -> Found:
    import torch

    from megarl import native
    from megarl.config.load import load_config
    from megarl.config.resources import wanted_world_size
    from megarl.layout import cost
    from megarl.reshard.assignment import assign_shards
    from megarl.reshard.placements import actor_placements, rollout_placements
    from megarl.reshard.rivals import gather_totals, m2n_totals
    from megarl.validate.choices import check_names, check_numbers
    from megarl.validate.meshes import make_plan
    from megarl.validate.models import read_models

    config = load_config(parsed.config, parsed.overrides)
    check_names(config)
    check_numbers(config)
    planned = make_plan(config, read_models(config, "train"), wanted_world_size(config), "train")
    if not planned.rollout_ranks:
        raise ConfigError(
            "rollout.engine is server: where servers stand is not known before they run; plan the "
            "reshard with rollout.engine=vllm"
        )
    if not 0 <= parsed.rank < planned.world_size:
        raise ConfigError(f"--rank {parsed.rank} is not in 0..{planned.world_size - 1}")

    def node_of(rank: int) -> int:
        return int(rank // parsed.ranks_per_node)

    run = assign_shards(planned, node_of)
    shape, dtype = run.actor.shape, config.rollout.dtype or config.actor.model.dtype
    itemsize = getattr(torch, dtype).itemsize

    started = time.perf_counter()
    sources = actor_placements(shape, run.actor.layout, run.actor.ranks)
    needed = rollout_placements(shape, run.replica, run.rollout_ranks)
    own = native.plan(sources, needed, node_of=node_of, rank=parsed.rank)
    plan_s = time.perf_counter() - started

    model = cost.LinkModel(**links)
    totals = native.plan_totals(sources, needed, node_of=node_of)
    gathered = gather_totals(shape, run.actor.layout, run.actor.ranks, run.rollout_ranks, node_of)
    m2n = m2n_totals(shape, run.replica.tp, run.actor.ranks, run.rollout_ranks, node_of)
    schemes = {
        "this engine": cost.cost_of(totals.values(), itemsize, model),
        "full gather": cost.cost_of(gathered.values(), itemsize, model),
        "vLLM's m2n": cost.cost_of(m2n.values(), itemsize, model),
    }
    size = sum(piece.box.numel for placement in needed.values() for piece in placement)
    alias = _aliased([(sources.get(rank, ()), needed[rank]) for rank in needed])
    head = (
        f"{run.actor.path}: actor {run.actor.layout.describe()} on {len(run.actor.ranks)} ranks, "
        f"{len(needed) // run.replica.size} replicas {run.replica.describe()} on {len(needed)}, "
        f"{parsed.ranks_per_node} ranks a node, {itemsize} bytes an element"
    )
    return Found(
        head, model, schemes, totals, itemsize, alias / size, parsed.rank,
        plan_s, own.digest(), own.table(),
    )  # fmt: skip


def _aliased(pairs: Sequence[tuple[Any, Any]]) -> int:
    """Elements in place, over all ranks; equal ranks share placements, which are compared once."""
    from megarl.layout.alias import aliased_elements

    distinct = {(id(held), id(needed)): (held, needed) for held, needed in pairs}
    found = {key: aliased_elements(*pair) for key, pair in distinct.items()}
    return sum(found[id(held), id(needed)] for held, needed in pairs)


def _report(found: Found) -> str:
    heads = ["", "max received", "in its node", "between nodes", "seconds", "bytes", "time"]
    rows, best = [heads], found.schemes["this engine"]
    for name, cost in found.schemes.items():
        ratios = (
            cost.received_max / max(best.received_max, 1),
            cost.seconds / max(best.seconds, 1e-12),
        )
        sizes = (cost.received_max, cost.near_max, cost.far_max)
        cells = [f"{size / GB:.2f} GB" for size in sizes] + [f"{cost.seconds:.3f}"]
        rows.append([name, *cells, *(f"{ratio:.2f}x" for ratio in ratios)])
    links = ", ".join(f"{n.replace('_', ' ')} {getattr(found.links, n):g} GB/s" for n in LINKS)
    lines = [found.head, "", *_columns(rows), ""]
    lines += [
        f"seconds: the slowest rank's slowest link, with {links} a rank and direction",
        "full gather: each stage's tensors gathered over its tensor ranks, then broadcast whole to "
        "the other stages' ranks",
        "vLLM's m2n: every worker receives row-parallel dense weights as shards, all else in "
        "full, from all of the trainer's ranks alike",
        f"already in place, byte for byte: {100 * found.aliased:.1f} % of the rollout's weights",
        f"plan {found.digest[:16]}: rank {found.rank} made its own in {found.plan_s:.2f} s",
        "",
        *_columns(_spread_rows(found)),
    ]
    return "\n".join(lines) + "\n"


def _spread_rows(found: Found) -> list[list[str]]:
    rows = [["a rank", "least", "mean", "most", "all ranks"]]
    names = ("copies in its GPU", "receives in its node", "receives from other nodes",
             "sends in its node", "sends to other nodes")  # fmt: skip
    for index, name in enumerate(names):
        values = [totals[index] * found.itemsize / GB for totals in found.totals.values()]
        figures = min(values), sum(values) / len(values), max(values), sum(values)
        rows.append([name, *(f"{figure:.3f} GB" for figure in figures)])
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "what": found.head,
        "plan": found.digest,
        "plan_seconds": found.plan_s,
        "links_gb_per_s": asdict(found.links),
        "aliased_share": found.aliased,
        "schemes": {name: asdict(cost) for name, cost in found.schemes.items()},
        "ranks": {
            rank: {name: count * found.itemsize for name, count in totals._asdict().items()}
            for rank, totals in found.totals.items()
        },
    }
