"""Episodes on top of a rollout engine: `EpisodeEngine` hands out whole ones as rollouts.

An episode's tokens are never decoded and tokenized again: what the model made stays as it was made,
and what the environment says is tokenized once and put behind it. Environments are called by
threads, so that slow ones do not keep the others waiting; one that takes longer than its time ends
its episode without a reward.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from megarl.data.seeds import stable_hash
from megarl.environments.base import Environment, Reply
from megarl.errors import RunError
from megarl.rollout.engine import TurnEngine
from megarl.types import Rollout, RolloutRequest, SamplingSpec

WAIT_S = 0.05
"""Between two looks at the clock, where only environments are at work."""


@dataclass(frozen=True)
class EpisodeSettings:
    """Of a run's episodes."""

    make: Callable[[], Environment]
    encode: Callable[[str], list[int]]
    """Text to tokens, without special ones."""
    name: str
    """Of the environment, for messages."""
    max_turns: int = 8
    """Of the model's in an episode."""
    turn_timeout_s: float = 30.0
    """For one answer of an environment."""
    workers: int = 32
    """Threads that call environments."""


@dataclass
class _Episode:
    """One on its way."""

    request: RolloutRequest
    sampling: SamplingSpec
    environment: Environment
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    made_by: list[int | None] = field(default_factory=list)
    """Of each token, the version of the weights; None for the environment's."""
    texts: list[str] = field(default_factory=list)
    reward: float = 0.0
    turns: int = 0
    is_cut_off: bool = False
    """Whether the last turn did not end by itself."""
    begun_at: float = 0.0
    """When its environment was called; 0 where it is the model's turn."""

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.sampling.max_response_length - len(self.tokens)

    def hear(self, tokens: Sequence[int]) -> None:
        """What the environment says."""
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens)
        self.made_by += [None] * len(tokens)

    def say(self, turn: Rollout) -> None:
        """What the model says."""
        self.turns += 1
        self.tokens += turn.response_ids
        self.logprobs += turn.logprobs
        self.made_by += [version for version, count in turn.spans for _ in range(count)]
        self.texts.append(turn.text)

    def spans(self) -> tuple[tuple[int, int], ...]:
        """(version, tokens), in order; what the environment said goes with the turn before it."""
        known = [version for version in self.made_by if version is not None]
        last, found = known[0], list[list[int]]()
        for version in self.made_by:
            last = last if version is None else version
            if found and found[-1][0] == last:
                found[-1][1] += 1
            else:
                found.append([last, 1])
        return tuple((version, count) for version, count in found)


class EpisodeEngine:
    """Turns of an engine, as episodes: a `TurnEngine` itself."""

    def __init__(self, engine: TurnEngine, settings: EpisodeSettings) -> None:
        self._engine, self._settings = engine, settings
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="megarl-environment")
        self._episodes: dict[int, _Episode] = {}
        self._thinking: set[int] = set()
        """Rows whose turn is the model's."""
        self._replies: queue.SimpleQueue[tuple[_Episode, Reply | str | Exception]]
        self._replies = queue.SimpleQueue()
        self._finished: list[Rollout] = []
        self.timeouts = 0
        """Episodes that ended because their environment took too long."""

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """Begin episodes."""
        for request in requests:
            episode = _Episode(request, sampling, self._settings.make())
            self._episodes[request.row] = episode
            self._call(episode, episode.environment.reset, request.prompt, request.seed)

    def step(self) -> bool:
        """One step below, or one answer of an environment; False when nothing is left."""
        self.look()
        if not self._episodes:
            return False
        if self._thinking:
            self._engine.step()
            self._take_turns()
        else:
            self._take_reply(WAIT_S)
        self._end_overdue()
        return bool(self._episodes) or bool(self._finished)

    def look(self) -> None:
        """Take in what has come, without waiting."""
        self._engine.look()
        self._take_turns()
        while self._take_reply(0.0):
            pass

    def wake(self) -> None:
        """See TurnEngine."""
        self._engine.wake()

    def poll(self) -> list[Rollout]:
        """Episodes that ended since the last poll, in order of their rows."""
        done, self._finished = self._finished, []
        return sorted(done, key=lambda rollout: rollout.request.row)

    def abort(self, rows: Sequence[int] | None = None) -> None:
        """Drop episodes; they never come out."""
        dropped = list(self._episodes) if rows is None else list(rows)
        self._engine.abort([row for row in dropped if row in self._thinking])
        for row in dropped:
            self._episodes.pop(row, None)
            self._thinking.discard(row)
        self._finished = [one for one in self._finished if one.request.row not in set(dropped)]

    def __enter__(self) -> EpisodeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """No more environments are called; what one is doing is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, episode: _Episode, method: Callable[..., Reply | str], *args: object) -> None:
        episode.begun_at = time.monotonic()

        def run() -> None:
            episode.begun_at = time.monotonic()  # what it waited for a thread is not its fault
            try:
                reply: Reply | str | Exception = method(*args)
            except Exception as error:  # an environment's author may raise anything
                reply = error
            self._replies.put((episode, reply))
            self._engine.wake()

        self._pool.submit(run)

    def _take_reply(self, wait_s: float) -> bool:
        try:
            episode, reply = (
                self._replies.get(timeout=wait_s) if wait_s else (self._replies.get_nowait())
            )
        except queue.Empty:
            return False
        row = episode.request.row
        if self._episodes.get(row) is not episode:  # aborted, or out of time
            return True
        if isinstance(reply, Exception):
            self.abort()
            raise RunError(
                f"environment {self._settings.name} failed on sample {row} (prompt_id "
                f"{episode.request.prompt.prompt_id}), turn {episode.turns}: "
                f"{type(reply).__name__}: {reply}"
            ) from reply
        episode.begun_at = 0.0
        if isinstance(reply, str):
            reply = Reply(reply)
        episode.reward += float(reply.reward)
        observed = self._settings.encode(reply.observation) if reply.observation else []
        if episode.is_cut_off:  # it is judged like any other, and nothing comes after it
            self._finish(episode, "length")
        elif reply.done:
            self._finish(episode, "stop")
        elif episode.turns >= self._settings.max_turns or len(observed) >= episode.room:
            self._finish(episode, "length")
        else:
            episode.hear(observed)
            self._ask(episode)
        return True

    def _ask(self, episode: _Episode) -> None:
        """The model's next turn."""
        request = episode.request
        prompt = replace(request.prompt, token_ids=(*request.prompt.token_ids, *episode.tokens))
        seed = stable_hash(request.seed, "turn", episode.turns) if episode.turns else request.seed
        turn = replace(request, prompt=prompt, seed=seed)
        self._thinking.add(request.row)
        sampling = replace(episode.sampling, max_response_length=episode.room)
        self._engine.submit([turn], sampling, more=True)

    def _take_turns(self) -> None:
        for turn in self._engine.poll():
            row = turn.request.row
            episode = self._episodes.get(row)
            if episode is None or row not in self._thinking:
                continue
            self._thinking.discard(row)
            episode.say(turn)
            episode.is_cut_off = turn.finish_reason != "stop"
            self._call(episode, episode.environment.step, turn.text)

    def _end_overdue(self) -> None:
        limit = time.monotonic() - self._settings.turn_timeout_s
        for row, episode in list(self._episodes.items()):
            if row in self._thinking or not 0 < episode.begun_at < limit:
                continue
            if not episode.turns:
                self.abort()
                raise RunError(
                    f"environment {self._settings.name} did not begin within turn_timeout_s "
                    f"{self._settings.turn_timeout_s:g} on sample {row} (prompt_id "
                    f"{episode.request.prompt.prompt_id})"
                )
            self.timeouts += 1
            self._finish(episode, "length")

    def _finish(self, episode: _Episode, reason: str) -> None:
        request = episode.request
        del self._episodes[request.row]
        self._thinking.discard(request.row)
        spans = episode.spans()
        learned = tuple(version is not None for version in episode.made_by)
        self._finished.append(
            Rollout(
                request=request,
                response_ids=tuple(episode.tokens),
                logprobs=tuple(episode.logprobs),
                text="".join(episode.texts),
                finish_reason=reason,
                weight_version=min(version for version, _ in spans),
                versions=spans if len(spans) > 1 else (),
                learned=learned if not all(learned) else (),
                reward=episode.reward,
            )
        )
