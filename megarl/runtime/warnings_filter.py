"""Library warnings that repeat on every rank what `megarl doctor` says once, or concern no user."""

from __future__ import annotations

import warnings

KNOWN = (
    # `megarl doctor` reports both packages, and what it costs to be without.
    r".*Apex (is|are) not installed",
    # Deprecations inside Megatron-Core and vLLM, at their own calls.
    r"full scope is deprecated",
    r"`torch.distributed.reduce_op` is deprecated",
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead",
)
"""Starts of their messages, as regular expressions."""


def silence_known_warnings() -> None:
    """Drop them from here on; all others stay."""
    for message in KNOWN:
        warnings.filterwarnings("ignore", message=message)
