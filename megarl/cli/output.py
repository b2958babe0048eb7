"""What the command line says when something is wrong."""

from __future__ import annotations

import sys


def complain(message: str) -> None:
    """One message on stderr, after whatever was printed before."""
    sys.stdout.flush()
    sys.stderr.write(f"megarl: error: {message}\n")
    sys.stderr.flush()
