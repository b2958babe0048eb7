"""Code against tests: the share of a prompt's tests that a response's program passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from megarl.errors import DataError
from megarl.rewards.fenced import last_block
from megarl.rewards.sandbox import Limits, run_program
from megarl.runtime.environment import processors_of_a_rank
from megarl.types import Prompt


@dataclass(frozen=True)
class CodeTests:
    """1 if the program passes all tests of its prompt, else 0, or the share that it passes.

    The program is the last fenced block of the response, or without one all of it. The data's
    column `tests` holds a list: {"input": ..., "output": ...} gives the program a standard input
    and compares its standard output, blanks at the ends of lines aside; {"code": ...} is run after
    the program and must end without an error. Each runs alone, see `megarl.rewards.sandbox`: no
    network, limits for time and memory, nothing left behind.
    """

    partial: bool = False
    """Give the share of tests, not all or nothing."""
    time_s: float = 5.0
    """Of one test, on the clock."""
    memory_megabytes: int = 512
    workers: int = 0
    """Tests at the same time; 0: this process's share of the node's processors."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """DataError for the first prompt without tests that can be run."""
        for prompt in prompts:
            _tests(prompt)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response."""
        jobs = [
            (number, program_of(response), test)
            for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
            for test in _tests(prompt)
        ]
        with ThreadPoolExecutor(self.workers or processors_of_a_rank()) as pool:
            passed = list(pool.map(lambda job: self._passes(job[1], job[2]), jobs))
        scores: list[list[bool]] = [[] for _ in responses]
        for (number, _, _), right in zip(jobs, passed, strict=True):
            scores[number].append(right)
        share = [sum(each) / len(each) for each in scores]
        return share if self.partial else [float(one == 1.0) for one in share]

    def _passes(self, program: str, test: Mapping[str, str]) -> bool:
        if not program.strip():
            return False
        limits = Limits(
            wall_s=self.time_s,
            cpu_s=max(int(self.time_s + 0.999), 1),
            memory_bytes=self.memory_megabytes << 20,
        )
        if "code" in test:
            outcome = run_program(f"{program}\n\n{test['code']}\n", "", limits)
            return outcome.status == 0
        outcome = run_program(program, test["input"], limits)
        return outcome.status == 0 and _lines(outcome.output) == _lines(test["output"])


def program_of(response: str) -> str:
    """The program in a response: its last fenced block, or without one all of it."""
    return last_block(response, "python", "py")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _tests(prompt: Prompt) -> list[dict[str, str]]:
    found: Any = prompt.extra.get("tests")
    right = isinstance(found, Sequence) and not isinstance(found, str) and len(found) > 0
    if not right or not all(_is_test(test) for test in found):
        raise DataError(
            f"prompt_id {prompt.prompt_id} (source {prompt.source!r}): column `tests` holds "
            f'{str(found)[:80]!r}: give a list of {{"input": ..., "output": ...}} or '
            '{"code": ...}'
        )
    return list(found)


def _is_test(test: object) -> bool:
    if not isinstance(test, Mapping):
        return False
    names = ("code",) if "code" in test else ("input", "output")
    return all(isinstance(test.get(name), str) for name in names)
