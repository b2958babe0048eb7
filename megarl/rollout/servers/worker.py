"""`RolloutWorker`: samples from vLLM servers, for a loop of one's own."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.request
import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from typing import Any

import torch

from megarl.data.seeds import stable_hash
from megarl.errors import ConfigError, RunError
from megarl.experience.sample import Sample
from megarl.rollout.servers.address import ServerAddress, parse_addresses
from megarl.rollout.servers.client import ClientOptions, Job
from megarl.rollout.servers.messages import ServerAnswer, generate_body
from megarl.rollout.servers.thread import ClientThread
from megarl.types import Prompt, RolloutRequest, SamplingSpec

Text = str | Sequence[int]
"""A prompt: text, which is tokenized once, here; or token ids."""


@dataclass
class _Batch:
    """What came of the samples of one call."""

    left: int
    answers: dict[Hashable, ServerAnswer] = field(default_factory=dict)
    failure: Exception | None = None
    done: Event = field(default_factory=Event)


class RolloutWorker:
    """Asks vLLM servers that were started with --enable-scale-out; safe for threads.

    Args:
        api_url: http://host:port of a server, or several of them; or where a `RolloutServer` is.
        tokenizer: Hugging Face folder or name; None: the model's, as the server names it.
        stop_token_ids: tokens that end an answer beside the model's own end.
    """

    def __init__(
        self,
        api_url: str | ServerAddress | Sequence[str | ServerAddress],
        *,
        tokenizer: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        stop_token_ids: Sequence[int] = (),
        seed: int = 0,
        options: ClientOptions | None = None,
    ) -> None:
        """ConfigError for addresses that cannot be used."""
        given = [api_url] if isinstance(api_url, (str, ServerAddress)) else list(api_url)
        urls = [one for one in given if isinstance(one, str)]
        named = iter(parse_addresses(urls, "api_url") if urls else [])
        self._servers = [next(named) if isinstance(one, str) else one for one in given]
        self._tokenizer_name, self._tokenizer = tokenizer, None
        self._sampling = SamplingSpec(
            temperature, top_p, top_k, stop_token_ids=tuple(stop_token_ids)
        )
        self._seed = seed
        self._prefix, self._calls, self._groups = uuid.uuid4().hex[:12], 0, 0
        self._lock = Lock()
        self._batches: dict[int, _Batch] = {}
        self._thread = ClientThread(options or ClientOptions(), self._done)
        self._thread.call(lambda client: client.set_servers(self._servers))

    def generate(self, prompts: Sequence[Text], max_tokens: int, *, n: int = 1) -> list[Sample]:
        """n samples of each prompt, in order: those of a prompt together, as one group.

        Where all prompts are token ids and no tokenizer was named, samples have no text.

        Raises RunError, naming the prompt, where a server refuses it or nobody answers.
        """
        call, jobs, asked = self._jobs(prompts, max_tokens, n)
        batch = self._batches[call]
        self._thread.call(lambda client: client.submit(jobs))
        batch.done.wait()
        del self._batches[call]
        if batch.failure is not None:
            left = [job.name for job in jobs if job.name not in batch.answers]
            self._thread.call(lambda client: client.abort(left))
            raise RunError(str(batch.failure)) from batch.failure
        return [self._sample(job, asked, batch.answers[job.name]) for job in jobs]

    async def agenerate(
        self, prompts: Sequence[Text], max_tokens: int, *, n: int = 1
    ) -> list[Sample]:
        """The same, for callers with an event loop; several calls may be under way."""
        return await asyncio.to_thread(self.generate, prompts, max_tokens, n=n)

    def close(self) -> None:
        """Drop what is on its way."""
        self._thread.close()

    def __enter__(self) -> RolloutWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _jobs(
        self, prompts: Sequence[Text], max_tokens: int, n: int
    ) -> tuple[int, list[Job], dict[Hashable, RolloutRequest]]:
        ids = [self._token_ids(index, prompt) for index, prompt in enumerate(prompts)]
        if not ids or n < 1:
            raise ConfigError(f"generate: {len(ids)} prompts, n {n}: at least one of each")
        with self._lock:
            call, self._calls = self._calls, self._calls + 1
            first, self._groups = self._groups, self._groups + len(ids)
            self._batches[call] = _Batch(len(ids) * n)
        spec = replace(self._sampling, max_response_length=max_tokens)
        jobs, asked = [], dict[Hashable, RolloutRequest]()
        for index, tokens in enumerate(ids):
            for number in range(n):
                name = (self._prefix, call, index * n + number)
                seed = stable_hash("worker", self._seed, call, index, number)
                prompt = Prompt(first + index, tokens, "", "", "")
                request = RolloutRequest(index * n + number, first + index, prompt, seed)
                body = generate_body(request, spec, "-".join(map(str, name)))
                jobs.append(Job(name=name, key=tokens, body=body, max_tokens=max_tokens))
                asked[name] = request
        return call, jobs, asked

    def _token_ids(self, index: int, prompt: Text) -> tuple[int, ...]:
        tokens = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if not len(tokens):
            raise ConfigError(f"generate: prompt {index} has no tokens")
        return tuple(int(token) for token in tokens)

    @property
    def tokenizer(self) -> Any:
        """The model's, read when it is needed first."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            name = self._tokenizer_name or _model_of(self._servers[0])
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        return self._tokenizer

    def _done(self, name: Hashable, result: ServerAnswer | Exception) -> None:
        assert isinstance(name, tuple)
        batch = self._batches.get(name[1])
        if batch is None:
            return
        batch.left -= 1
        if isinstance(result, ServerAnswer):
            batch.answers[name] = result
        else:
            number = name[2]
            batch.failure = batch.failure or RunError(f"generate: sample {number}: {result}")
        if not batch.left or batch.failure:
            batch.done.set()

    def _sample(
        self, job: Job, asked: dict[Hashable, RolloutRequest], answer: ServerAnswer
    ) -> Sample:
        request, tokens = asked[job.name], answer.token_ids
        known = all(name.isdecimal() for name, _ in answer.versions)
        reads = self._tokenizer is not None or self._tokenizer_name is not None
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if reads else ""
        return Sample(
            sample_id=str(job.body["request_id"]),
            group=request.group,
            prompt_ids=torch.tensor(request.prompt.token_ids, dtype=torch.int32),
            response_ids=torch.tensor(tokens, dtype=torch.int32),
            logprobs=torch.tensor(answer.logprobs, dtype=torch.float32),
            learned=torch.ones(len(tokens), dtype=torch.bool),
            text=str(text),
            finish_reason=answer.finish_reason,
            versions=tuple((int(v), count) for v, count in answer.versions) if known else (),
        )


def _model_of(server: ServerAddress) -> str:
    """What a server says its model is: a folder or a name."""
    request = urllib.request.Request(f"{server.url}/v1/models", headers=server.headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return str(json.loads(response.read())["data"][0]["root"])
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        raise ConfigError(
            f"{server.name} does not name its model ({type(error).__name__}): give tokenizer, or "
            "token ids as prompts"
        ) from None
