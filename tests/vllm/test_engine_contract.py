"""One contract for all rollout engines: vLLM on one rank, on two and in two stages, vLLM servers,
transformers, scripted.

Proven: the clauses of `RolloutEngine`, each by a job of the same name; vLLM and transformers agree
about greedy answers, and both about log-probs with a plain forward pass (1e-4, fp32). Not shown:
GPUs, thousands of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs_engines as jobs
import pytest
import torch
from cluster import Cluster, World
from tiny_models import VOCAB_SIZE, TinyModels
from vllm_server import Servers, VllmServer

from megarl.layout import ReplicaLayout
from megarl.types import Rollout, SamplingSpec

pytestmark = [pytest.mark.dist, pytest.mark.vllm]
ONE = ReplicaLayout()
ENGINES = {
    "vllm-tp1": ONE,
    "vllm-tp2": ReplicaLayout(2),
    "vllm-pp2": ReplicaLayout(1, pp=2),
    "servers": ONE,
    "transformers": ONE,
    "scripted": ONE,
}
WITH_MODEL = ("vllm-tp1", "vllm-tp2", "vllm-pp2", "servers", "transformers")
RESIDENT = (jobs.weights_wait_for_requests, jobs.dirty_weights_are_not_generated_with)
"""Clauses of engines that have their weights in this process."""
FAMILY = "qwen3"


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n == "vllm-pp2")) for n in ENGINES],
)
def engine(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    tiny: TinyModels,
    servers: Servers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, World]]:
    """A loaded engine; the clause about the time before is checked on the way."""
    script: Path = tmp_path_factory.mktemp("script") / "script.jsonl"
    jobs.write_script(script)
    name = request.param
    replica = ENGINES[name]
    with cluster.world(range(replica.size)) as world:
        if name == "servers":
            started = [_server(servers, tiny(FAMILY)) for _ in range(2)]
            for server in started:
                server.wait_until_ready()
            world.run(jobs.start_client, [server.url for server in started])
        else:
            world.run(jobs.start, name.split("-")[0], tiny(FAMILY), str(script), replica)
        world.run(jobs.refuses_work_before_the_first_commit)
        world.run(jobs.load)
        yield name, world
        if name == "servers":
            world.run(jobs.close_engine)
            for server in started:
                server.end()


def _server(servers: Servers, path: str) -> VllmServer:
    return servers.start(path, backend="", load_format="auto", max_model_len=jobs.MAX_MODEL_LEN)


@pytest.mark.parametrize(
    "clause",
    [
        jobs.same_seed_same_sample,
        jobs.poll_gives_each_rollout_once_in_order,
        jobs.aborted_rows_never_come_out,
        jobs.more_can_be_submitted_on_the_way,
        jobs.weights_wait_for_requests,
        jobs.dirty_weights_are_not_generated_with,
        jobs.names_the_sample_it_refuses,
        jobs.stops_at_max_model_len,
        jobs.other_seed_other_sample,
        jobs.version_rides_on_rollouts,
    ],
    ids=lambda clause: clause.__name__,
)
def test_clause(clause: Callable[..., None], engine: tuple[str, World]) -> None:
    name, world = engine
    if name == "servers" and clause in RESIDENT:
        pytest.skip("servers have their weights themselves")
    world.run(clause)


@pytest.mark.parametrize("sampling", [jobs.GREEDY, jobs.SAMPLED], ids=["greedy", "sampled"])
def test_logprobs_are_those_of_a_forward_pass(
    sampling: SamplingSpec, engine: tuple[str, World], tiny: TinyModels
) -> None:
    """After temperature; greedy answers are the most probable tokens; ranks of a replica agree."""
    name, world = engine
    by_rank = world.run(jobs.answers, sampling)
    assert all(_tokens(found) == _tokens(by_rank[0]) for found in by_rank)
    if name not in WITH_MODEL:
        return
    model = _oracle(tiny(FAMILY))
    for one in by_rank[0]:
        prompt = one.request.prompt.token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.response_ids])).logits[0]
        expected = (logits / (sampling.temperature or 1.0)).log_softmax(-1)[len(prompt) - 1 : -1]
        chosen = expected[torch.arange(len(one.response_ids)), torch.tensor(one.response_ids)]
        assert (chosen - torch.tensor(one.logprobs)).abs().max() < 1e-4
        if sampling.temperature == 0:
            assert expected.argmax(-1).tolist() == list(one.response_ids)


def test_prompt_logprobs(engine: tuple[str, World], tiny: TinyModels) -> None:
    name, world = engine
    tokens = torch.randint(2, VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(2))
    if name not in WITH_MODEL:
        return
    with torch.no_grad():
        logprobs = _oracle(tiny(FAMILY))(tokens[None]).logits[0, :-1].log_softmax(-1)
    expected = logprobs[torch.arange(23), tokens[1:]]
    for replicas in world.run(jobs.prompt_logprobs, tokens.tolist()):
        assert len(replicas) == (2 if name == "servers" else 1)
        assert all((torch.tensor(one) - expected).abs().max() < 1e-4 for one in replicas)


def _tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [one.response_ids for one in rollouts]


def _oracle(path: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
