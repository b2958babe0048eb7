"""The error family: what went wrong, with the numbers and the cure, in one message."""

from __future__ import annotations


class MegaRLError(Exception):
    """Base of every error that MegaRL raises on purpose."""

    exit_code = 1


class ConfigError(MegaRLError):
    """A setting, path or size that is wrong before the run starts; the process leaves with 2.

    The message names the key, the numbers and the cure.
    """

    exit_code = 2


class DataError(ConfigError):
    """A data set or checkpoint file that cannot be used: names the file and the row or tensor."""


class PlanError(MegaRLError):
    """Two placements that do not fit each other: names tensor and box."""


class RunError(MegaRLError):
    """A failure during the run: says role, rank, step and sample where they are known."""


class PeerError(RunError):
    """A peer that did not answer: says who waited for whom, and in what."""


class VerificationError(RunError):
    """Weights or numbers that are not what the sender sent: names tensor, box and ranks."""
