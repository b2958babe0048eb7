"""The order of a sync's steps over several servers, and what a failed one leaves behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megarl.errors import PeerError
from megarl.transfer.trainer import WeightTransfer


class Recorder:
    """A server that notes what it is asked, and may fail at one step."""

    def __init__(self, name: str, log: list[tuple[str, str]], fails_at: str = "") -> None:
        self.name, self._log, self._fails_at = name, log, fails_at

    def __getattr__(self, step: str) -> Any:
        def call(*_: Any) -> None:
            self._log.append((step, self.name))
            if step == self._fails_at:
                raise PeerError(f"{self.name} did not {step}")

        return call


class Own:
    """The trainer's part of an update, which works."""

    attempt = 1

    def close(self) -> None:
        """Nothing is open."""

    def move(self, *_: Any) -> str:
        """A report."""
        return "moved"


def transfer(log: list[tuple[str, str]], fails_at: str) -> WeightTransfer:
    """Connected to two servers, of which the second fails."""
    made = WeightTransfer.__new__(WeightTransfer)
    made.__dict__ |= {
        "_servers": (Recorder("A", log), Recorder("B", log, fails_at)),
        "_timeout_s": 5.0,
        "_session": Own(),
        "_attempt": 1,
        "version": 3,
        "_universe": SimpleNamespace(all_gather=lambda value: [value]),
        "_spec": SimpleNamespace(legend=lambda: "legend"),
        "_actor": SimpleNamespace(here=False),
    }
    return made


def test_every_step_is_asked_of_all_before_the_next() -> None:
    log: list[tuple[str, str]] = []
    made = transfer(log, "")
    made.sync(4)
    assert [step for step, _ in log] == [
        step for step in ("pause", "update", "finish", "forget", "resume") for _ in "AB"
    ]
    assert made.version == 4


@pytest.mark.parametrize("step", ["pause", "update", "finish", "forget", "resume"])
def test_nobody_resumes_after_a_failure(step: str) -> None:
    """But for a failure to resume, when all have the new weights; then the error says so."""
    log: list[tuple[str, str]] = []
    made = transfer(log, step)
    with pytest.raises(PeerError, match=f"B did not {step}") as caught:
        made.sync(4)
    assert made.version == 3
    generating = [name for asked, name in log if asked == "resume"]
    if step == "resume":
        assert "those that answered generate with them" in str(caught.value)
    else:
        assert not generating and "stay so until a sync succeeds" in str(caught.value)
