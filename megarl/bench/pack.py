"""`megarl bench pack`: how fast regions are packed, unpacked and copied, beside a plain copy.

On a GPU the plain copy is one device-to-device copy, on a CPU one memcpy, by one thread and by as
many as are configured (OMP_NUM_THREADS). Rates count bytes read and bytes written. The ways take
turns, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megarl.bench.output import add_outputs, check_outputs, keep
from megarl.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="megarl bench pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--megabytes", type=int, default=128, help="packed by each way (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument(
        "--repeat", type=int, help="calls of one measurement (default: 10 on a GPU, 1 on a CPU)"
    )
    parser.add_argument("--threads", type=int, help="on a CPU (default: OMP_NUM_THREADS, or 1)")
    add_outputs(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure where this process computes; returns the exit status."""
    arguments = build_parser().parse_args(list(argv))
    for name in ("megabytes", "rounds", "repeat", "threads"):
        least = {"megabytes": 2, "rounds": 2}.get(name, 1)
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}: give {least} or more")
    check_outputs(arguments)
    found = measure(arguments)
    _show(found)
    keep(arguments, found, _rates(found), "GB/s, read and written")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one call of every way, by round, and the bytes it reads and writes.

    The plain copy is the first way.
    """
    from megarl.bench.pack_ways import all_ways
    from megarl.runtime.device import (
        device,
        device_name,
        on_cuda,
        synchronize,
        threads_per_process,
    )

    threads = arguments.threads or threads_per_process()
    repeat = arguments.repeat or (10 if on_cuda() else 1)
    ways = all_ways(device(), threads, arguments.megabytes << 20)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(arguments.rounds + 1):
        for name, way in ways.items():
            taken = _timed(way.run, repeat, synchronize)
            if index:  # the first round warms up
                seconds[name].append(taken)
    where = f"on {device_name()}" if on_cuda() else f"on the CPU, {threads} threads: no GPU figures"
    return {
        "what": f"megarl_cpp, {arguments.megabytes} MB packed, {where}",
        "device": device().type,
        "ways": {
            name: {"seconds": seconds[name], "traffic_bytes": way.traffic_bytes}
            for name, way in ways.items()
        },
    }


def _timed(run: Callable[[], None], repeat: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    synchronize()
    return (time.perf_counter() - start) / repeat


def _rates(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Way -> GB/s of every round."""
    return {
        name: [way["traffic_bytes"] / seconds / 1e9 for seconds in way["seconds"]]
        for name, way in found["ways"].items()
    }


def _show(found: Mapping[str, Any]) -> None:
    from megarl.observe.report import show, summary_table

    rates, rows = _rates(found), {}
    plain_rates = next(iter(rates.values()))
    for name, rate in rates.items():
        low, _, high = statistics.quantiles(rate, n=4)
        shares = [one / plain for one, plain in zip(rate, plain_rates, strict=True)]
        rows[name] = (
            f"{statistics.median(rate):.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{statistics.median(shares):.2f}",
        )
    show(summary_table(rows, ("way", "GB/s", "quartiles", "to plain copy"), found["what"]))
