"""`python -m megarl.pipeline.mark DIR STAGE STATE [SECONDS]`: for the scripts of batch jobs.

Writes down that a stage has begun or is done; when all are done, the report is written too. A stage
that is done stays so: for one that is to begin again the exit status is 3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megarl.errors import ConfigError
from megarl.pipeline.records import Records

DONE_BEFORE = 3
"""Exit status where a stage that is to begin is done."""


def main(arguments: Sequence[str]) -> int:
    """Set one stage's state; returns the exit status."""
    if len(arguments) not in (3, 4) or arguments[2] not in ("started", "done"):
        raise ConfigError(f"{' '.join(arguments)}: give DIR STAGE started|done [SECONDS]")
    folder, name, state = Path(arguments[0]), arguments[1], arguments[2]
    seconds = float(arguments[3]) if len(arguments) == 4 else 0.0
    records = Records(folder)
    before = records.read(name)
    if state == "started" and before is not None and before.state == "done":
        return DONE_BEFORE
    wanted: Any = state
    records.mark(name, wanted, seconds)
    found = [records.read(stage) for stage in records.index()["stages"]]
    if all(record is not None and record.state == "done" for record in found):
        from megarl.pipeline.report import write_report

        write_report(folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as problem:
        sys.stderr.write(f"megarl: error: {problem}\n")
        sys.exit(problem.exit_code)
