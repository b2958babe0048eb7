"""What goes to a vLLM server and what comes back: token ids in, token ids and log-probs out.

The route is vLLM's /inference/v1/generate (`--enable-scale-out`): no text is tokenized anywhere on
the way, and it says which weights made which tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from megarl.types import RolloutRequest, SamplingSpec

ROUTE = "inference/v1/generate"


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """One finished sample, as a server gave it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log-prob of each token, after temperature where the server was told so."""
    finish_reason: str
    """"stop" or "length"."""
    versions: tuple[tuple[str, int], ...]
    """(version of the weights, tokens that they made), in order; () where none are told."""


class BadAnswer(ValueError):
    """What came is not what a server answers; the message says what is wrong with it."""


class OtherWeights(BadAnswer):
    """A good answer, by weights that no sync delivered."""


def generate_body(
    request: RolloutRequest, sampling: SamplingSpec, request_id: str
) -> dict[str, Any]:
    """The JSON of one sample's request."""
    params: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k if sampling.top_k > 0 else 0,
        "max_tokens": sampling.max_response_length,
        "stop_token_ids": list(sampling.stop_token_ids),
        "logprobs": 0,
        "detokenize": False,
    }
    if sampling.temperature > 0:
        params["seed"] = request.seed
    return {
        "request_id": request_id,
        "token_ids": list(request.prompt.token_ids),
        "sampling_params": params,
    }


def prompt_body(token_ids: Sequence[int]) -> dict[str, Any]:
    """The JSON of a request for a text's own log-probs; it samples one token, which is not read."""
    params = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
    return {"token_ids": list(token_ids), "sampling_params": params}


def read_prompt_logprobs(body: Any, token_ids: Sequence[int]) -> list[float]:
    """Log-prob of each token after the first; BadAnswer for anything else."""
    try:
        rows = zip(token_ids[1:], body["prompt_logprobs"][1:], strict=True)
        return [float(row[str(token)]["logprob"]) for token, row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise BadAnswer(f"{type(error).__name__} ({error}) in its answer") from None


def check_versions(answer: ServerAnswer, delivered: Set[str]) -> None:
    """OtherWeights, unless every token was made by weights of one of these names."""
    if not answer.versions or not {name for name, _ in answer.versions} <= delivered:
        raise OtherWeights(
            "its weights are not those of the last sync: it was started anew, or takes them from "
            "somebody else"
        )


def read_answer(body: Any, max_tokens: int) -> ServerAnswer:
    """The sample in a server's answer; BadAnswer for anything else.

    An answer that was aborted is one: its tokens are not all there.
    """
    try:
        (choice,) = body["choices"]
        reason = choice["finish_reason"]
        tokens = tuple(int(token) for token in choice["token_ids"] or ())
        content = (choice.get("logprobs") or {}).get("content") or ()
        scored = tuple(int(each["token_id"]) for each in content)
        logprobs = tuple(float(each["logprob"]) for each in content)
        spans = choice.get("weight_versions") or ()
        versions = _spans(spans, len(tokens))
    except (KeyError, TypeError, ValueError) as error:
        raise BadAnswer(f"{type(error).__name__} ({error}) in its answer") from None
    if reason not in ("stop", "length"):
        raise BadAnswer(f"it ended with {reason!r}")
    if not 0 < len(tokens) <= max_tokens or tokens != scored:
        raise BadAnswer(
            f"{len(tokens)} tokens of at most {max_tokens}, {len(scored)} log-probs, of "
            f"{'the same' if tokens == scored else 'other'} tokens"
        )
    if any(not math.isfinite(value) or value > 1e-3 for value in logprobs):
        raise BadAnswer("a log-prob that is none")
    return ServerAnswer(tokens, logprobs, reason, versions)


def _spans(spans: Sequence[Any], count: int) -> tuple[tuple[str, int], ...]:
    """vLLM's spans of output tokens -> how many tokens each version made."""
    found: list[tuple[str, int]] = []
    for span in spans:
        start, end = int(span["start"]), int(span["end"])
        if start != sum(tokens for _, tokens in found) or end <= start:
            raise BadAnswer(f"spans of weight versions that do not follow each other: {spans!r}")
        found.append((str(span["version"]), end - start))
    if found and sum(tokens for _, tokens in found) != count:
        raise BadAnswer(f"spans of weight versions that are not of {count} tokens: {spans!r}")
    return tuple(found)
