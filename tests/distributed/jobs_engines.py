"""Jobs of the rollout engines' contract test: each asserts one clause on every rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from tiny_models import EOS, VOCAB_SIZE
from worker import Rank

from megarl.errors import RunError
from megarl.layout import ReplicaLayout, model_shape_from_hf, vllm_placement
from megarl.rollout.engine import ResidentEngine, RolloutEngine, generate
from megarl.rollout.factory import build_engine
from megarl.rollout.servers.client import ClientOptions
from megarl.rollout.servers.engine import ServerEngine
from megarl.rollout.servers.pool import NamedServers
from megarl.rollout.vllm_engine import VllmSettings
from megarl.types import Prompt, Rollout, RolloutRequest, SamplingSpec
from megarl.validate.models import read_hf_config
from megarl.weights.source import SafetensorsFolder

MAX_MODEL_LEN = 64
GREEDY = SamplingSpec(temperature=0.0, max_response_length=12, stop_token_ids=(EOS,))
SAMPLED = SamplingSpec(temperature=0.7, max_response_length=12, stop_token_ids=(EOS,))


def requests(rows: Sequence[int], seed: int = 100) -> list[RolloutRequest]:
    """One request per row; prompts of 1 to 11 tokens, seeds of their own."""
    dice = torch.Generator().manual_seed(17)
    prompts = torch.randint(2, VOCAB_SIZE, (16, 11), generator=dice).tolist()
    return [
        RolloutRequest(r, r, Prompt(r, tuple(prompts[r][: 1 + 3 * r % 11]), "", "", ""), seed + r)
        for r in rows
    ]


def write_script(path: Path) -> None:
    """Answers for the scripted engine: some end by themselves, some do not."""
    lines = []
    for prompt_id in range(16):
        for variant in range(5):
            tokens = [2 + (7 * prompt_id + 3 * variant + i) % 60 for i in range(1 + prompt_id % 5)]
            tokens += [EOS] if prompt_id % 2 else []
            row = {"prompt_id": prompt_id, "response_ids": tokens, "logprobs": [-1.5] * len(tokens)}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines))


def start(rank: Rank, kind: str, path: str, script: str, replica: ReplicaLayout) -> None:
    """An engine over the whole world, without weights."""
    settings = VllmSettings(
        model=path,
        run_name=rank.run_name,
        replica=replica,
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        kv_cache_bytes=16 << 20,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        engine_args={"script": script} if kind == "scripted" else {},
    )
    shape = model_shape_from_hf(read_hf_config(path))
    engine = build_engine(kind, settings, shape, rank.rank, lambda ids: " ".join(map(str, ids)))
    rank.kept |= {"engine": engine, "shape": shape, "path": path, "version": 0, "replica": replica}


def start_client(rank: Rank, urls: Sequence[str]) -> None:
    """The engine of servers that run and have the folder's weights."""
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    options = ClientOptions(timeout_s=60, patience_s=20, backoff_s=0.02)
    engine = ServerEngine(NamedServers(list(urls)), options, decode)
    rank.kept |= {"engine": engine, "version": 0, "urls": list(urls)}


def refuses_work_before_the_first_commit(rank: Rank) -> None:
    """Nothing is generated with weights that never came."""
    assert "before the weight sync" in _refusal(_engine(rank), requests([0]), GREEDY)


def load(rank: Rank) -> None:
    """Write the folder's weights in place and commit; `submit` is refused in between."""
    if "urls" in rank.kept:
        _load_servers(rank)
        return
    engine, shape = resident(rank), rank.kept["shape"]
    source, live = SafetensorsFolder(rank.kept["path"]), engine.begin_load()
    slice_ = rank.kept["replica"].slice_of(rank.rank)
    for piece in vllm_placement(shape, slice_, padded_vocab=False):
        region = live[piece.buffer].as_strided(piece.box.shape, piece.strides, piece.offset)
        region.copy_(source.read(piece.tensor, piece.box))
    assert "before the weight sync" in _refusal(engine, requests([0]), GREEDY)
    rank.kept["version"] += 1
    engine.commit(rank.kept["version"])
    assert engine.weight_version == rank.kept["version"]


def _load_servers(rank: Rank) -> None:
    """They have the folder's weights from their start; here they are given a version."""
    engine: Any = _engine(rank)
    rank.kept["version"] += 1
    for url in rank.kept["urls"]:
        body = json.dumps({"new_version": str(rank.kept["version"])}).encode()
        headers = {"Content-Type": "application/json"}
        urlopen(Request(f"{url}/update_weight_version", body, headers), timeout=30).close()
    version = rank.kept["version"]
    engine.weights_are(version, engine.source.known(), {str(version): version})


def close_engine(rank: Rank) -> None:
    """See RolloutEngine."""
    _engine(rank).close()


def answers(rank: Rank, sampling: SamplingSpec) -> list[Rollout]:
    """Rollouts of all rows; checked for everything that every engine must keep."""
    asked = requests(range(12))
    done = generate(_engine(rank), [(asked, sampling)])
    assert [one.request for one in done] == asked
    for one in done:
        assert 1 <= len(one.response_ids) == len(one.logprobs) <= sampling.max_response_length
        assert all(0 <= token < VOCAB_SIZE for token in one.response_ids)
        assert all(logprob <= 1e-6 for logprob in one.logprobs)
        assert EOS not in one.response_ids[:-1]
        assert one.finish_reason == ("stop" if one.response_ids[-1] == EOS else "length")
        assert one.text == " ".join(map(str, one.response_ids))
        assert one.weight_version == rank.kept["version"]
    return done


def same_seed_same_sample(rank: Rank) -> None:
    """A sample depends on its seed and prompt, not on its row or its company."""
    engine = _engine(rank)
    whole = generate(engine, [(requests(range(12)), SAMPLED)])
    part = generate(engine, [(requests([7, 3]), SAMPLED)])
    assert [one.response_ids for one in part] == [whole[r].response_ids for r in (3, 7)]
    moved = [replace(one, row=20 + one.row) for one in requests([3, 7])]
    again = generate(engine, [(moved, SAMPLED)])
    assert [one.response_ids for one in again] == [whole[r].response_ids for r in (3, 7)]


def other_seed_other_sample(rank: Rank) -> None:
    """Two samples of one prompt differ in most cases."""
    engine = _engine(rank)
    first = generate(engine, [(requests(range(12)), SAMPLED)])
    second = generate(engine, [(requests(range(12), seed=977), SAMPLED)])
    same = sum(a.response_ids == b.response_ids for a, b in zip(first, second, strict=True))
    assert same <= 4


def poll_gives_each_rollout_once_in_order(rank: Rank) -> None:
    """Everything comes out once; each poll is in order of rows; a shorter answer comes earlier."""
    engine, polls = _engine(rank), []
    engine.submit(requests([9, 2, 5, 0, 11]), SAMPLED)
    while engine.step():
        polls.append([one.request.row for one in engine.poll()])
    polls.append([one.request.row for one in engine.poll()])
    assert all(rows == sorted(rows) for rows in polls)
    assert sorted(row for rows in polls for row in rows) == [0, 2, 5, 9, 11]
    assert engine.poll() == [] and engine.step() is False


def aborted_rows_never_come_out(rank: Rank) -> None:
    """Some rows, then all."""
    engine = _engine(rank)
    engine.submit(requests([1, 3, 6]), LONG, more=True)
    assert engine.step()
    engine.abort([3])
    done = _drain(engine)
    assert sorted(one.request.row for one in done) == [1, 6]
    engine.submit(requests([1, 3, 6]), LONG, more=True)
    assert engine.step()
    engine.abort()
    assert _drain(engine) == []
    assert [one.request.row for one in generate(engine, [(requests([3]), GREEDY)])] == [3]


LONG = SamplingSpec(temperature=0.0, max_response_length=12)


def more_can_be_submitted_on_the_way(rank: Rank) -> None:
    """With more=True requests join while others run, and answer as they would alone."""
    engine = _engine(rank)
    alone = generate(engine, [(requests([3, 6, 8]), GREEDY)])
    engine.submit(requests([3]), GREEDY, more=True)
    engine.step()
    engine.submit(requests([6, 8]), GREEDY)
    together = sorted(_drain(engine), key=lambda one: one.request.row)
    assert [one.response_ids for one in together] == [one.response_ids for one in alone]


def dirty_weights_are_not_generated_with(rank: Rank) -> None:
    """From the word that they change until the next commit; not under running requests."""
    engine = resident(rank)
    before = generate(engine, [(requests([3, 6]), GREEDY)])
    engine.mark_dirty()
    try:
        engine.submit(requests([3]), GREEDY)
    except RunError as error:
        assert "aliased to the actor's, which have changed" in str(error)
    else:
        raise AssertionError("generation was allowed")
    engine.begin_load()
    engine.commit(rank.kept["version"])
    after = generate(engine, [(requests([3, 6]), GREEDY)])
    assert [one.response_ids for one in after] == [one.response_ids for one in before]
    engine.submit(requests([3]), GREEDY)
    engine.step()
    try:
        engine.mark_dirty()
    except RunError as error:
        assert "1 request" in str(error)
    else:
        raise AssertionError("weights in use became dirty")
    _drain(engine)


def weights_wait_for_requests(rank: Rank) -> None:
    """A write cannot open under running requests."""
    engine = resident(rank)
    engine.submit(requests([3]), GREEDY)
    engine.step()
    try:
        engine.begin_load()
    except RunError as error:
        assert "1 request" in str(error)
    else:
        raise AssertionError("begin_load was allowed")
    assert len(_drain(engine)) == 1


def version_rides_on_rollouts(rank: Rank) -> None:
    """After the next commit, rollouts carry the next version."""
    load(rank)
    (one,) = generate(_engine(rank), [(requests([2]), GREEDY)])
    assert one.weight_version == rank.kept["version"] > 1


def names_the_sample_it_refuses(rank: Rank) -> None:
    """A prompt that is too long: the message says which; the engine goes on."""
    engine = _engine(rank)
    long = Prompt(41, tuple([5] * (MAX_MODEL_LEN + 3)), "", "", "")
    text = _refusal(engine, [RolloutRequest(13, 13, long, 1)], GREEDY)
    assert "13" in text and "41" in text and str(MAX_MODEL_LEN + 3) in text
    assert len(generate(engine, [(requests([4]), GREEDY)])) == 1


def stops_at_max_model_len(rank: Rank) -> None:
    """A long prompt leaves less room than max_response_length."""
    prompt = Prompt(3, tuple([5] * (MAX_MODEL_LEN - 4)), "", "", "")
    (one,) = generate(_engine(rank), [([RolloutRequest(0, 0, prompt, 1)], LONG)])
    assert len(one.response_ids) <= 4 and one.finish_reason == "length"


def prompt_logprobs(rank: Rank, tokens: Sequence[int]) -> list[list[float]]:
    """See RolloutEngine."""
    return _engine(rank).prompt_logprobs(tokens)


def resident(rank: Rank) -> ResidentEngine:
    """The engine, where it has its weights in this process."""
    engine = _engine(rank)
    assert isinstance(engine, ResidentEngine)
    return engine


def _engine(rank: Rank) -> RolloutEngine:
    engine: Any = rank.kept["engine"]
    return engine


def _drain(engine: RolloutEngine) -> list[Rollout]:
    done = engine.poll()
    while engine.step():
        done += engine.poll()
    return done + engine.poll()


def _refusal(engine: RolloutEngine, asked: Sequence[RolloutRequest], sampling: SamplingSpec) -> str:
    """The message of the RunError that submit, or the first step after it, raises."""
    try:
        engine.submit(asked, sampling)
        engine.step()
    except RunError as error:
        return str(error)
    raise AssertionError("the request was taken")
