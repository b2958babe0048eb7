"""`RolloutWorker` against stub servers, and the example of a loop of one's own on a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from stub_server import delay, status, stubs_beside

from megarl import RolloutWorker
from megarl.errors import ConfigError, RunError
from megarl.rollout.servers.client import ClientOptions
from megarl.trainer import PPOBatch

QUICK = ClientOptions(timeout_s=5, connect_timeout_s=2, patience_s=2, backoff_s=0.02)
PROMPTS = [[5, 6, 7], [8], [9, 10]]


def test_samples_come_in_order_with_their_groups() -> None:
    with (
        stubs_beside(None, None) as servers,
        RolloutWorker([stub.url for stub in servers], options=QUICK) as worker,
    ):
        first = worker.generate(PROMPTS, 6, n=4)
        second = worker.generate(PROMPTS[:1], 6, n=2)
    assert [sample.group for sample in first] == [0] * 4 + [1] * 4 + [2] * 4
    assert {sample.group for sample in second} == {3}
    assert len({sample.sample_id for sample in first + second}) == 14
    for index, sample in enumerate(first):
        assert sample.prompt_ids.tolist() == PROMPTS[index // 4]
        assert sample.response_ids.shape == sample.logprobs.shape == sample.learned.shape == (6,)
        assert sample.versions == ((1, 6),) and bool(sample.learned.all())
    assert first[0].response_ids.tolist() != first[1].response_ids.tolist()  # seeds of their own
    batch = PPOBatch.of([sample.rewarded(float(i)) for i, sample in enumerate(first)])
    assert batch.rewards == [float(i) for i in range(12)]
    assert batch.groups == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.responses[5] == first[5].response_ids.tolist()
    assert batch.logprobs is not None and batch.logprobs[5] == [-0.5] * 6


def test_one_seed_makes_one_batch() -> None:
    """And another seed another one."""
    found = []
    with stubs_beside(None) as (server,):
        for seed in (3, 3, 4):
            with RolloutWorker(server.url, seed=seed, options=QUICK) as worker:
                samples = worker.generate(PROMPTS, 5, n=2)
                found.append([sample.response_ids.tolist() for sample in samples])
    assert found[0] == found[1] != found[2]


def test_calls_may_be_under_way_together() -> None:
    async def both(worker: RolloutWorker) -> list[list[int]]:
        calls = [worker.agenerate(PROMPTS, 4, n=2) for _ in range(5)]
        answers = await asyncio.gather(*calls)
        return [[sample.group for sample in samples] for samples in answers]

    with stubs_beside(delay(0.05), None) as servers:
        urls = [stub.url for stub in servers]
        with RolloutWorker(urls, options=QUICK) as worker:
            groups = asyncio.run(both(worker))
    flat = [group for some in groups for group in some]
    assert all(len(some) == 6 for some in groups) and len(set(flat)) == 15


def test_what_cannot_be_is_said() -> None:
    with stubs_beside(status(400)) as (server,):
        with RolloutWorker(server.url, options=QUICK) as worker:
            with pytest.raises(RunError, match=r"generate: sample 0: status 400.*the stub says no"):
                worker.generate(PROMPTS, 4)
            with pytest.raises(ConfigError, match="0 prompts"):
                worker.generate([], 4)
            with pytest.raises(ConfigError, match="prompt 1 has no tokens"):
                worker.generate([[3], []], 4)
            with pytest.raises(ConfigError, match="server 0 does not name its model"):
                worker.generate(["text"], 4)
    with pytest.raises(ConfigError, match=r"api_url\[0\] cannot be read"):
        RolloutWorker("somewhere")
    with RolloutWorker("http://127.0.0.1:9", options=QUICK) as worker:
        with pytest.raises(RunError, match="no server has answered for"):
            worker.generate(PROMPTS, 4)


def test_tokens_of_others_are_not_learned() -> None:
    with stubs_beside(None) as (server,), RolloutWorker(server.url, options=QUICK) as worker:
        (sample,) = worker.generate(PROMPTS[:1], 4)
    assert PPOBatch.of([sample]).learned is None
    sample.learned[2] = False
    assert PPOBatch.of([sample]).learned == [[True, True, False, True]]


@pytest.mark.slow
@pytest.mark.vllm
def test_the_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/own_loop.py, on a server that it starts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from examples import own_loop
    from examples.demo_assets import write_config, write_tokenizer

    assert len(Path(own_loop.__file__).read_text().splitlines()) <= 60
    write_tokenizer(tmp_path)
    write_config(tmp_path)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    means = own_loop.run(str(tmp_path), None)
    assert len(means) == own_loop.EPOCHS and means[0] < 0.6 < 0.9 < means[-1]
