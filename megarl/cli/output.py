"""What the command line says beside its results."""

from __future__ import annotations

import sys


def tell(message: str) -> None:
    """One line on stderr about how far things are."""
    sys.stderr.write(f"megarl: {message}\n")
    sys.stderr.flush()


def complain(message: str) -> None:
    """One message on stderr, after whatever was printed before."""
    sys.stdout.flush()
    sys.stderr.write(f"megarl: error: {message}\n")
    sys.stderr.flush()
