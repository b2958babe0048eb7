"""Rewards from a service: batches of prompts and responses go out, numbers come back."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megarl.errors import ConfigError, DataError, RunError
from megarl.types import Prompt

_JITTER = random.Random()
"""A generator of its own: Python's is the run's, and checkpoints keep it."""
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another try may succeed."""


@dataclass(frozen=True)
class HttpReward:
    """Numbers that an HTTP service gives.

    POST of {"samples": [{"prompt", "response", "label", "source", "extra"}, ...]} to `url`; the
    answer is {"scores": [number, ...]}, one a sample. A request that fails, or takes longer than
    `timeout_s`, is sent again after a pause that doubles, with some chance in it.
    """

    url: str
    batch_size: int = 64
    """Samples of a request."""
    max_in_flight: int = 8
    """Requests at the same time."""
    timeout_s: float = 60.0
    retries: int = 5
    """Tries after the first."""
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.5
    """Before the second try."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {self.url!r}: give http://host:port/path")
        for name in ("batch_size", "max_in_flight", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """DataError for the first prompt that cannot be sent; ConfigError without httpx."""
        if importlib.util.find_spec("httpx") is None:
            raise ConfigError("reward http needs httpx: pip install httpx")
        for prompt in prompts:
            try:
                json.dumps(dict(prompt.extra))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"prompt_id {prompt.prompt_id} (source {prompt.source!r}) has a column that "
                    f"cannot be sent as JSON: {error}"
                ) from None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score per response; RunError where the service does not give them."""
        samples = [
            {
                "prompt": prompt.text,
                "response": response,
                "label": prompt.label,
                "source": prompt.source,
                "extra": dict(prompt.extra),
            }
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        size = self.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        return asyncio.run(self._ask_all(batches))

    async def _ask_all(self, batches: Sequence[list[dict[str, Any]]]) -> list[float]:
        import httpx

        limits = httpx.Limits(max_connections=self.max_in_flight)
        gate = asyncio.Semaphore(self.max_in_flight)
        async with httpx.AsyncClient(
            timeout=self.timeout_s, limits=limits, headers=self.headers
        ) as client:

            async def ask(batch: list[dict[str, Any]]) -> list[float]:
                async with gate:
                    return await self._ask(client, batch)

            answers = await asyncio.gather(*map(ask, batches))
        return [score for scores in answers for score in scores]

    async def _ask(self, client: Any, batch: list[dict[str, Any]]) -> list[float]:
        import httpx

        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                pause = self.pause_s * 2 ** (attempt - 1)
                await asyncio.sleep(pause * _JITTER.uniform(0.5, 1.5))
            try:
                answer = await client.post(self.url, json={"samples": batch})
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                continue
            if answer.status_code in _AGAIN:
                problem = f"status {answer.status_code}"
                continue
            return self._read(answer, len(batch))
        raise RunError(
            f"{self.url} gave no answer in {self.retries + 1} tries, the last: {problem}"
        )

    def _read(self, answer: Any, count: int) -> list[float]:
        if answer.status_code != 200:
            raise RunError(f"{self.url}: status {answer.status_code}: {answer.text[:200]!r}")
        try:
            scores = answer.json()["scores"]
            if isinstance(scores, list) and len(scores) == count:
                return scores
        except (ValueError, KeyError, TypeError):
            scores = None
        raise RunError(
            f'{self.url}: the answer is not {{"scores": [...]}} with {count} numbers: '
            f"{answer.text[:200]!r}"
        )
