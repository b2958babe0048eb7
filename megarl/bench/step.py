"""`megarl bench step`: one RL step by phase, beside bare Megatron-Core and bare vLLM on its tokens.

One process. Rounds are interleaved, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megarl.config.schema import Config
from megarl.layout import ReplicaLayout, model_shape_from_hf, with_scalar_head
from megarl.mesh.layout import MeshLayout
from megarl.mesh.run_plan import RolePlan, RunPlan
from megarl.observe.report import show, summary_table
from megarl.runtime.environment import set_variables

MATMUL_SIZE = 1536
GROUP = 4
"""Samples of a prompt, for GRPO."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="megarl bench step", description=__doc__)
    parser.add_argument(
        "--estimator", default="grpo", choices=["grpo", "gae"], help="gae is PPO with a critic"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--samples", type=int, default=64, help="samples per step")
    parser.add_argument("--prompt", type=int, default=12, help="tokens per prompt")
    parser.add_argument("--response", type=int, default=16, help="tokens per response, at most")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--vocab", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args(argv)
    if arguments.samples % GROUP:
        parser.error(f"--samples {arguments.samples} does not divide into groups of {GROUP}")
    set_variables({"OMP_NUM_THREADS": str(arguments.threads)})
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    rows = {name: round(value, 4) for name, value in figures.items()}
    title = f"one {arguments.estimator} step, {arguments.dtype}, {arguments.samples} samples"
    show(summary_table(rows, ("figure", "median"), title))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds per phase and ratios; medians over the rounds after one that warms up."""
    from megarl.train.main import Session

    config, plan = _config(arguments, folder)
    with Session(plan, config.run) as session:
        from megarl.bench.bare import BareMegatron, bare_generate
        from megarl.train.build import build_run
        from megarl.train.phases import (
            compute_advantages,
            generate,
            score,
            sync_weights,
            update,
        )

        run = build_run(config, plan, session.universe, session.control)
        bare = BareMegatron(plan.actor, config, run.actor.engine.mesh)
        sync_weights(run)
        seen: defaultdict[str, list[float]] = defaultdict(list)
        for step in range(arguments.rounds + 1):
            run.step = step
            run.books.phases.pop()
            samples = generate(run, run.next_prompts())
            rollouts = list(samples.rollouts.values())
            batch = compute_advantages(run, score(run, samples))
            update(run, batch)
            sync_weights(run)
            phases = run.books.phases.pop()
            step_s = phases["timing_s/step"]
            phases["share of the wall time in phases"] = sum(phases.values()) / step_s - 1
            phases["bare/update_s"] = _seconds(lambda r=rollouts: bare.step(r))  # type: ignore[misc]
            phases["bare/generate_s"] = _seconds(lambda r=rollouts: bare_generate(run, r))  # type: ignore[misc]
            for name, value in phases.items() if step else ():
                seen[name].append(value)
        figures = {name: statistics.median(values) for name, values in seen.items()}
        if run.rollout.here:
            run.rollout.engine.close()
    return figures | _derived(figures, arguments)


def _derived(figures: dict[str, float], arguments: argparse.Namespace) -> dict[str, float]:
    peak = matmul_flops(torch.float32 if arguments.dtype == "float32" else torch.bfloat16)
    layer = 4 * arguments.hidden**2 + 3 * arguments.hidden * arguments.ffn
    weights = arguments.layers * layer
    tokens = arguments.samples * (arguments.prompt + arguments.response)
    update = figures["timing_s/update_actor"]
    return {
        "bare Megatron-Core / update": figures["bare/update_s"] / update,
        "bare vLLM / generate": figures["bare/generate_s"] / figures["timing_s/generate"],
        "matmul peak, GFLOP/s": peak / 1e9,
        "update, share of the matmul peak": 6 * weights * tokens / update / peak,
    }


def matmul_flops(dtype: torch.dtype) -> float:
    """Best of five square matrix products, floating-point operations per second."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    times = [_seconds(lambda: a @ a) for _ in range(6)]
    return float(2 * MATMUL_SIZE**3 / min(times))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _config(arguments: argparse.Namespace, folder: Path) -> tuple[Config, RunPlan]:
    """A run on a fresh model of the asked size, with prompts of equal length."""
    hf = _write_model(arguments, folder)
    _write_prompts(arguments, folder)
    config = Config()
    group = 1 if arguments.estimator == "gae" else GROUP
    for model in (config.actor.model, config.critic.model, config.reference.model):
        model.path, model.fresh, model.dtype = str(folder), True, arguments.dtype
    config.run.dir = str(folder / "run")
    config.observe.use_tensorboard = config.observe.progress = False
    config.observe.logprob_diff_mean_limit = config.observe.logprob_diff_p99_limit = 0.0
    config.data.train_path = str(folder / "prompts.jsonl")
    config.data.rollout_batch_size = arguments.samples // group
    config.data.n_samples_per_prompt = group
    config.data.max_prompt_length = arguments.prompt
    config.data.max_response_length = arguments.response
    config.algorithm.adv_estimator = arguments.estimator
    config.algorithm.kl_coef = 0.05 if arguments.estimator == "gae" else 0.0
    config.algorithm.global_batch_size = config.algorithm.micro_batch_size = arguments.samples
    config.weight_sync.canary = False
    shape = model_shape_from_hf(hf)
    policy = RolePlan((0,), MeshLayout(), shape, str(folder), hf)
    value = RolePlan((0,), MeshLayout(), with_scalar_head(shape), str(folder), hf)
    with_critic = arguments.estimator == "gae"
    critic, reference = (value, policy) if with_critic else (None, None)
    return config, RunPlan(1, policy, critic, reference, None, (0,), ReplicaLayout())


def _write_model(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(arguments.vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="w0"))
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(folder)
    heads = max(arguments.hidden // 64, 1)
    LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.ffn,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return dict(json.loads((folder / "config.json").read_text()))


def _write_prompts(arguments: argparse.Namespace, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, arguments.vocab, (256, arguments.prompt), generator=generator)
    rows = (
        {"prompt": " ".join(f"w{i}" for i in row), "label": "w2", "source": "bench"}
        for row in ids.tolist()
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(text)
