"""The phases of one step, a file each, in the order of the driver; most are one verb of it.

A verb is one line of `timing_s/*`. Below them: `rows` (what travels between roles), `compare` and
`select` (parts of `advantages`).
"""

from megarl.train.phases.advantages import compute_advantages
from megarl.train.phases.generate import generate
from megarl.train.phases.score import measure, score
from megarl.train.phases.sync import sync_weights
from megarl.train.phases.update import update

__all__ = ["compute_advantages", "generate", "measure", "score", "sync_weights", "update"]
