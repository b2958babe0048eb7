"""One call to each server, at the same time, while the trainer does its own part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from megarl.errors import MegaRLError
from megarl.transfer.servers import Server


class Calls:
    """Threads that nobody has to wait for: a server that never answers does not hold the exit."""

    def __init__(
        self,
        servers: Sequence[Server],
        call: Callable[[int, Server], None],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """call: gets a server and its number; on_failure: called, in a thread, for each failure."""
        self._call, self._on_failure = call, on_failure
        self._failures: dict[str, str] = {}
        self._threads = {
            server.name: threading.Thread(
                target=self._run, args=(index, server), name=f"megarl-{server.name}", daemon=True
            )
            for index, server in enumerate(servers)
        }
        for thread in self._threads.values():
            thread.start()

    def failures(self) -> str:
        """What the calls that failed so far had to say."""
        return "; ".join(self._failures.values())

    def wait(self, seconds: float) -> None:
        """Until all calls have ended, at most so long; those that have not count as failed."""
        deadline = time.monotonic() + seconds
        for name, thread in self._threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._failures.setdefault(name, f"{name} gave no answer in {seconds:g} s")

    def _run(self, index: int, server: Server) -> None:
        try:
            self._call(index, server)
        except Exception as error:
            known = isinstance(error, MegaRLError)
            text = str(error) if known else f"{server.name}: {type(error).__name__}: {error}"
            self._failures[server.name] = text
            self._on_failure()
