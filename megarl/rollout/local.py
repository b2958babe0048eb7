"""What engines that live in one process share: admission, the weight write, finished rollouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megarl.errors import RunError
from megarl.rollout.engine import NOT_COMMITTED
from megarl.types import Rollout, RolloutRequest, SamplingSpec

Decode = Callable[[Sequence[int]], str]


@dataclass
class Sample:
    """One request on its way."""

    request: RolloutRequest
    sampling: SamplingSpec
    generator: torch.Generator
    response_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Prompt and response so far."""
        return [*self.request.prompt.token_ids, *self.response_ids]


class LocalEngine(ABC):
    """A `RolloutEngine` whose every step adds one token to each sample.

    All ranks of a replica must be given the same requests: nothing is exchanged between them.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        decode: Decode,
        max_model_len: int,
        max_num_seqs: int,
    ) -> None:
        """parameters: by vLLM's names, in vLLM's layout; they stay where they are."""
        self._parameters = dict(parameters)
        self._decode = decode
        self._max_model_len, self._max_num_seqs = max_model_len, max_num_seqs
        self.weight_version = -1
        self._writing = self._dirty = False
        self._running: dict[int, Sample] = {}
        self._finished: list[Rollout] = []

    @abstractmethod
    def next_tokens(self, samples: Sequence[Sample]) -> list[tuple[int, float]]:
        """The next token of each sample, with its log-prob after temperature."""

    @abstractmethod
    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """See RolloutEngine."""

    def submit(
        self, requests: Sequence[RolloutRequest], sampling: SamplingSpec, *, more: bool = False
    ) -> None:
        """See RolloutEngine."""
        if self._writing or self._dirty or self.weight_version < 0:
            raise RunError(NOT_COMMITTED)
        for request in requests:
            length = len(request.prompt.token_ids)
            if not 0 < length < self._max_model_len:
                raise RunError(
                    f"rollout: sample {request.row} (prompt {request.prompt.prompt_id}) has "
                    f"{length} tokens; at least 1 and at most {self._max_model_len - 1} are taken"
                )
            generator = torch.Generator().manual_seed(request.seed)
            self._running[request.row] = Sample(request, sampling, generator)

    def step(self) -> bool:
        """See RolloutEngine."""
        if not self._running:
            return False
        samples = list(self._running.values())[: self._max_num_seqs]
        for sample, (token, logprob) in zip(samples, self.next_tokens(samples), strict=True):
            sample.response_ids.append(token)
            sample.logprobs.append(logprob)
            self._finish_if_ended(sample, token)
        return True

    def poll(self) -> list[Rollout]:
        """See RolloutEngine."""
        done, self._finished = self._finished, []
        return sorted(done, key=lambda rollout: rollout.request.row)

    def abort(self, rows: Sequence[int] | None = None) -> None:
        """See RolloutEngine."""
        for row in list(self._running) if rows is None else rows:
            self._running.pop(row, None)

    def begin_load(self) -> Mapping[str, Tensor]:
        """See RolloutEngine."""
        self._check_idle()
        self._writing = True
        return self._parameters

    def record_loaders(self, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """See RolloutEngine: there are no loaders."""
        return None

    def alias(self, views: Mapping[str, Tensor]) -> frozenset[str]:
        """See RolloutEngine."""
        self._parameters |= views
        return frozenset(views)

    def mark_dirty(self) -> None:
        """See RolloutEngine."""
        self._check_idle()
        self._dirty = True

    def load_full(self, name: str, tensor: Tensor) -> None:
        """See RolloutEngine: there are no loaders, so nothing asks for one."""
        raise RunError(f"rollout: this engine has no loader for {name}")

    def sleep(self) -> None:
        """See RolloutEngine: it gives nothing back."""
        self._check_idle()

    def commit(self, version: int) -> None:
        """See RolloutEngine."""
        self._writing = self._dirty = False
        self.weight_version = version

    def look(self) -> None:
        """See RolloutEngine."""
        return

    def wake(self) -> None:
        """See RolloutEngine."""
        return

    def take_metrics(self) -> dict[str, float]:
        """See RolloutEngine."""
        return {}

    def close(self) -> None:
        """See RolloutEngine."""
        self._running.clear()

    def is_complete(self, sample: Sample) -> bool:
        """Whether an engine has nothing more to say, though no stop token came."""
        return False

    def _check_idle(self) -> None:
        if self._running:
            raise RunError(f"rollout: weights cannot change under {len(self._running)} requests")

    def _finish_if_ended(self, sample: Sample, token: int) -> None:
        stopped = token in sample.sampling.stop_token_ids
        length = len(sample.response_ids)
        full = length >= sample.sampling.max_response_length
        full = full or len(sample.request.prompt.token_ids) + length >= self._max_model_len
        if not (stopped or full or self.is_complete(sample)):
            return
        del self._running[sample.request.row]
        self._finished.append(
            Rollout(
                request=sample.request,
                response_ids=tuple(sample.response_ids),
                logprobs=tuple(sample.logprobs),
                text=self._decode(sample.response_ids),
                finish_reason="stop" if stopped else "length",
                weight_version=self.weight_version,
            )
        )
