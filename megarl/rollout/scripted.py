"""A rollout engine that answers from a table: it takes weights, and never looks at them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from megarl.errors import DataError, RunError
from megarl.rollout.local import Decode, LocalEngine, Sample
from megarl.types import RolloutRequest

Answer = tuple[Sequence[int], Sequence[float]]
"""(response tokens, their log-probs)."""
Script = Callable[[RolloutRequest], Answer]


class ScriptedEngine(LocalEngine):
    """Gives each request the answer its script has for it; see `RolloutEngine`."""

    def __init__(
        self,
        script: Script,
        parameters: Mapping[str, Tensor],
        decode: Decode,
        max_model_len: int,
        max_num_seqs: int = 256,
    ) -> None:
        super().__init__(parameters, decode, max_model_len, max_num_seqs)
        self._script = script

    def next_tokens(self, samples: Sequence[Sample]) -> list[tuple[int, float]]:
        """See LocalEngine."""
        found = []
        for sample in samples:
            tokens, logprobs = self._script(sample.request)
            index = len(sample.response_ids)
            found.append((int(tokens[index]), float(logprobs[index])))
        return found

    def is_complete(self, sample: Sample) -> bool:
        """See LocalEngine."""
        return len(sample.response_ids) >= len(self._script(sample.request)[0])

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Raises RunError: a script has no model."""
        raise RunError("rollout: a scripted engine has no log-probs; set weight_sync.canary=false")


def read_script(path: str | Path) -> Script:
    """The script of a jsonl file: one line per answer, prompt_id, response_ids and logprobs.

    A prompt's answers are dealt by the sample's seed. Raises DataError, naming the file, for lines
    that are not such objects.
    """
    answers: dict[int, list[Answer]] = {}
    try:
        lines = Path(path).read_text().splitlines()
        for number, line in enumerate(lines, start=1):  # noqa: B007 (the message reads it)
            row = json.loads(line)
            answer = (row["response_ids"], row["logprobs"])
            answers.setdefault(int(row["prompt_id"]), []).append(answer)
    except OSError as error:
        raise DataError(f"rollout.engine_args.script: {error}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"rollout.engine_args.script: {path}, line {number}: {error!r}") from None

    def script(request: RolloutRequest) -> Answer:
        known = answers.get(request.prompt.prompt_id)
        if not known:
            raise RunError(
                f"rollout: the script has no answer to prompt {request.prompt.prompt_id}"
            )
        return known[request.seed % len(known)]

    return script
