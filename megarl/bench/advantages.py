"""`megarl bench advantages`: seconds and memory of every estimator on a large batch, on the CPU.

Lengths are drawn evenly from 1 to --length, with one response of each end; with --holes every
response has tool output in its middle, outside the mask. Memory is the most that was resident while
an estimator ran, the batch itself included, over the bytes of the batch: the tensors that the
estimator is given. The estimators take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from megarl.bench.output import add_outputs, check_outputs, keep
from megarl.errors import ConfigError

if TYPE_CHECKING:
    from megarl.algorithms.advantages import AdvantageInputs

_LEAST = {"responses": 2, "length": 2, "group": 1, "rounds": 1, "threads": 1}


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="megarl bench advantages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--responses", type=int, default=4096, help="default: %(default)s")
    add("--length", type=int, default=8192, help="tokens of the longest (default: %(default)s)")
    add("--group", type=int, default=8, help="samples of a prompt (default: %(default)s)")
    add("--holes", action="store_true", help="tool output in every response")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--threads", type=int, help="default: OMP_NUM_THREADS, or 1")
    add("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    add_outputs(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure on the CPU; returns the exit status."""
    arguments = build_parser().parse_args(list(argv))
    for name, least in _LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}: give {least} or more")
    check_outputs(arguments)
    found = measure(arguments)
    _show(found)
    keep(arguments, found, {n: e["seconds"] for n, e in found["estimators"].items()}, "seconds")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each estimator: seconds by round, and the most memory in batches."""
    import torch

    from megarl.algorithms.advantages import estimator_names
    from megarl.runtime.device import threads_per_process

    threads = arguments.threads or threads_per_process()
    torch.set_num_threads(threads)
    whole = make_batch(arguments)
    names = estimator_names()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    batches = dict.fromkeys(names, 0.0)
    for index in range(arguments.rounds + 1):
        for name in names:
            taken, memory = _run(name, whole)
            if index:  # the first round warms up
                seconds[name].append(taken)
                batches[name] = max(batches[name], memory)
    holes = ", tool output in each" if arguments.holes else ""
    return {
        "what": f"{arguments.responses} responses of up to {arguments.length} tokens{holes}, "
        f"{arguments.dtype}, on the CPU, {threads} threads",
        "estimators": {
            name: {"seconds": seconds[name], "memory_batches": batches[name]} for name in names
        },
    }


def make_batch(arguments: argparse.Namespace) -> AdvantageInputs:
    """Random inputs of every kind that there is; what an estimator does not read is left out."""
    import torch

    from megarl.algorithms.advantages import AdvantageInputs

    generator = torch.Generator().manual_seed(0)
    rows, width = arguments.responses, arguments.length
    dtype = getattr(torch, arguments.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    lengths[0], lengths[1] = width, 1
    columns = torch.arange(width, dtype=torch.int32)
    mask = columns < lengths
    if arguments.holes:
        mask &= (columns < lengths // 3) | (columns >= lengths // 2)
    return AdvantageInputs(
        mask=mask,
        rewards=normal(rows, width),
        scores=normal(rows),
        group=torch.arange(rows) // arguments.group,
        values=normal(rows, width),
        gamma=0.999,
        lam=0.95,
        baselines=normal(rows),
        steps=mask & (columns % 64 == 0),
    )


def _run(name: str, whole: AdvantageInputs) -> tuple[float, float]:
    """Seconds of one call with its normalization, and its memory in batches."""
    import torch

    from megarl.algorithms.advantages import estimator, step_advantages
    from megarl.bench.peak import peak, reset_peak

    chosen = estimator(name)
    inputs = replace(
        whole,
        values=whole.values if chosen.needs_values else None,
        baselines=whole.baselines if chosen.needs_greedy else None,
        steps=whole.steps if name == "grpo_process" else None,
    )
    given = [getattr(inputs, field.name) for field in fields(inputs)]
    size = sum(x.nbytes for x in given if isinstance(x, torch.Tensor))
    before = reset_peak()
    start = time.perf_counter()
    result = step_advantages(name, inputs)
    taken = time.perf_counter() - start
    grown = max(peak() - before, 0)
    del result
    return taken, (size + grown) / size


def _show(found: Mapping[str, Any]) -> None:
    from megarl.observe.report import show, summary_table

    rows = {
        name: (
            f"{statistics.median(entry['seconds']):.3f}",
            f"{max(entry['seconds']):.3f}",
            f"{entry['memory_batches']:.2f}",
        )
        for name, entry in found["estimators"].items()
    }
    columns = ("estimator", "seconds", "slowest", "memory, in batches")
    show(summary_table(rows, columns, found["what"]))
