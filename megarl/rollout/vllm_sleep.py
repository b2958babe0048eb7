"""vLLM's sleep mode, by tag: all of its memory away while the roles train, back around the sync."""

from __future__ import annotations

from typing import Any

DISCARD = 2
"""vLLM's level that keeps nothing: the sync writes all weights anew, the cache is stale then."""
TAGS = ("weights", "kv_cache")
"""In the order of waking: the cache when the sync needs no buffers of its own any more."""


class SleepMode:
    """Puts a `vllm.LLM` to sleep, where that is asked for; addresses stay as they are."""

    def __init__(self, llm: Any, enabled: bool) -> None:
        self._llm, self._enabled = llm, enabled
        self._away: list[str] = []

    @property
    def asleep(self) -> bool:
        """Whether some of the memory is away."""
        return bool(self._away)

    def begin(self) -> None:
        """Give everything back; nothing may be in flight."""
        if self._enabled and not self._away:
            self._llm.sleep(level=DISCARD)
            self._away = list(TAGS)

    def wake(self, tag: str) -> None:
        """Take the memory of one tag again, where it is away; its content is undefined."""
        if tag in self._away:
            self._llm.wake_up(tags=[tag])
            self._away.remove(tag)
