"""`megarl bench reshard`: one weight sync on real processes, beside the ways that others take.

An actor on real Megatron-Core and vLLM replicas in the same processes, over gloo. The ways take
turns, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megarl.bench.output import add_outputs, check_outputs, keep
from megarl.bench.reshard_parts import config_json
from megarl.config.shorthand import parse_mesh
from megarl.errors import ConfigError
from megarl.layout import ReplicaLayout, model_shape_from_hf
from megarl.mesh.layout import MeshLayout, layout_from_config
from megarl.reshard.placements import actor_placements, rollout_placements
from megarl.runtime.device import on_cuda
from megarl.runtime.environment import this_launch

MODULE = "megarl.bench.reshard"
REFERENCE = "this engine"


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="megarl bench reshard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=4, help="processes (default: %(default)s)")
    parser.add_argument("--actor", default="t2p2", metavar="MESH", help="default: %(default)s")
    parser.add_argument("--rollout-tp", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ffn", type=int, default=2816)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--buffer-megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    add_outputs(parser)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str]) -> int:
    """Start the ranks, or be one of them; returns the exit status."""
    arguments = build_parser().parse_args(list(argv))
    for name, least in {"ranks": 1, "rollout_tp": 1, "rounds": 2, "buffer_megabytes": 1}.items():
        if getattr(arguments, name) < least:
            flag, value = name.replace("_", "-"), getattr(arguments, name)
            raise ConfigError(f"--{flag} is {value}: give {least} or more")
    if arguments.ranks % arguments.rollout_tp:
        raise ConfigError(
            f"--rollout-tp {arguments.rollout_tp} does not divide --ranks {arguments.ranks}"
        )
    _check(arguments)
    if on_cuda():
        raise ConfigError(
            "megarl bench reshard compares ways over gloo, in host memory, and this machine "
            "computes on CUDA: run it with CUDA_VISIBLE_DEVICES= and the environment of "
            "`make venv SET=cpu`"
        )
    check_outputs(arguments)
    if this_launch().launcher != "alone":
        return _rank(arguments)
    from megarl.runtime import spawn

    with tempfile.TemporaryDirectory() as folder:
        inside = [*argv, "--folder", folder]
        return spawn.spawn(inside, arguments.ranks, _complain, module=MODULE)


def _complain(message: str) -> None:
    sys.stderr.write(f"megarl: error: {message}\n")


def _check(arguments: argparse.Namespace) -> None:
    """ConfigError where the model cannot be split as asked."""
    shape, layout = model_shape_from_hf(config_json(arguments)), layout_of(arguments)
    actor_placements(shape, layout, range(arguments.ranks))
    rollout_placements(shape, ReplicaLayout(arguments.rollout_tp), range(arguments.ranks))


def layout_of(arguments: argparse.Namespace) -> MeshLayout:
    """The actor's mesh."""
    mesh = parse_mesh(arguments.actor, "--actor", "command line")
    return layout_from_config(_mesh_config(mesh), arguments.ranks, "--actor")


def _mesh_config(settings: Mapping[str, Any]) -> Any:
    from megarl.config.schema import MeshConfig

    return MeshConfig(**settings)


def _rank(arguments: argparse.Namespace) -> int:
    from megarl.bench.reshard_world import measure

    found = measure(arguments, layout_of(arguments), ReplicaLayout(arguments.rollout_tp))
    if found is None:  # not the rank that reports
        return 0
    _show(found)
    keep(
        arguments,
        found,
        {n: way["seconds"] for n, way in found["ways"].items()},
        "seconds for one sync, slowest rank",
    )
    return 0


def _show(found: Mapping[str, Any]) -> None:
    from megarl.observe.report import show, summary_table

    ways = found["ways"]
    floor, reference = statistics.median(ways["floor"]["seconds"]), ways[REFERENCE]
    rows = {}
    for name, way in ways.items():
        median = statistics.median(way["seconds"])
        low, _, high = statistics.quantiles(way["seconds"], n=4)
        rows[name] = (
            f"{median:.4f}",
            f"{low:.4f}-{high:.4f}",
            f"{median / statistics.median(reference['seconds']):.2f}",
            f"{median / floor:.2f}",
            f"{way['received_bytes'] / 1e6:.1f}",
            f"{way['to_bound']:.2f}",
            f"{way['messages']}",
            f"{way['extra_bytes'] / 1e6:.0f}",
        )
    heads = (
        "way", "seconds", "quartiles", "to ours", "to floor", "MB received", "to bound", "messages",
        "MB extra",
    )  # fmt: skip
    show(summary_table(rows, heads, found["what"]))
    show(summary_table({k: f"{v:.4f}" for k, v in found["beside"].items()}, ("beside", "median")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
