"""Stages of a demo: each runs once, and a demo that was interrupted goes on from the last one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megarl.observe.report import show, summary_table
from megarl.observe.summary import table_rows
from megarl.runtime.spawn import die_with_parent


class Stages:
    """Runs stages in order; a finished one leaves `<folder>/stages/<name>.json` behind."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """settings: what the results depend on; a folder made with others is refused."""
        self._marks = folder / "stages"
        self._marks.mkdir(parents=True, exist_ok=True)
        known = self._marks / "settings.json"
        if known.exists() and json.loads(known.read_text()) != settings:
            raise SystemExit(
                f"{folder} was made with {known.read_text().strip()}, now asked for "
                f"{json.dumps(settings)}: give another --dir, or remove that folder"
            )
        known.write_text(json.dumps(settings) + "\n")

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a stage unless it is done; returns what it returned (JSON)."""
        mark = self._marks / f"{name}.json"
        if mark.exists():
            say(f"{name}: done before, in {mark}")
            return json.loads(mark.read_text())["result"]
        say(f"{name} ...")
        started = time.time()
        result = work()
        seconds = round(time.time() - started, 1)
        partial = mark.with_suffix(".partial")
        partial.write_text(json.dumps({"seconds": seconds, "result": result}))
        partial.replace(mark)
        say(f"{name}: {seconds:.0f} s")
        return result

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took."""
        marks = sorted(self._marks.glob("*.json"), key=lambda mark: mark.stat().st_mtime)
        found = ((mark.stem, json.loads(mark.read_text())) for mark in marks)
        return {name: content["seconds"] for name, content in found if "seconds" in content}


def final_table(
    title: str, run: Path, stages: Stages, extra: Mapping[str, str], wanted_points: float
) -> int:
    """Show what was reached; 1 when held-out accuracy did not rise by `wanted_points`, else 0."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    before, after = summary["accuracy_first"], summary["accuracy_last"]
    points = 100 * (after - before)
    stage_rows = {f"stage {name}": f"{seconds:.0f} s" for name, seconds in stages.seconds().items()}
    rows = {name: ("", text) for name, text in (stage_rows | dict(extra)).items()}
    rows["report"], rows["curves"] = ("", str(run / "report.txt")), ("", str(run / "curves.png"))
    show(summary_table(table_rows(summary) | rows, ("", "first", "last"), title))
    verdict = "rose" if points >= wanted_points else f"rose by less than {wanted_points:g} points"
    say(f"held-out accuracy {verdict}: {points:+.1f} points")
    return 0 if points >= wanted_points else 1


def quiet_loading() -> None:
    """No bars of transformers where nobody sees them move."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def say(text: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(f"[demo] {text}\n")
    sys.stdout.flush()


def megarl(*arguments: str, env: dict[str, str] | None = None) -> None:
    """Run the megarl command; an exit status that is not 0 ends the demo with it."""
    run_python(["-m", "megarl.cli.main", *arguments], env)


def run_python(arguments: Sequence[str], env: dict[str, str] | None = None) -> None:
    """Run this interpreter on `arguments`; an exit status that is not 0 ends the demo with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen(
        [sys.executable, *arguments], env=os.environ | (env or {}), preexec_fn=die_with_parent
    )
    try:
        status = process.wait()
    except BaseException as error:
        # Whatever ends the demo ends what it started, and waits for that.
        process.terminate()
        process.wait()
        if not isinstance(error, KeyboardInterrupt):
            raise
        say("interrupted; the same command goes on with the stage that this was")
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise SystemExit(status)
