"""`megarl bench rollout`: the client of vLLM servers, beside vLLM's own benchmark client.

One server, started here. Both clients give it the same number of prompts of the same length, in
turns; vLLM's streams its answers, this one takes them whole, with log-probs and weight versions.
Then the client alone, against a server without a model; and a weight update with and without
samples under way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megarl.bench.output import add_outputs, check_outputs, keep
from megarl.errors import ConfigError, RunError
from megarl.observe.report import show, summary_table

STUB = [sys.executable, "-m", "megarl.bench.rollout_stub"]
VLLM_CLIENT = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
)
OURS, THEIRS = "this client", "vLLM's benchmark client"
IDLE, LOADED = "weight update, idle", "weight update, samples under way"
MANY = 10_000


def build_parser() -> argparse.ArgumentParser:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        prog="megarl bench rollout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=200, help="of a round (default: 200)")
    parser.add_argument("--concurrency", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=32, help="tokens (default: %(default)s)")
    parser.add_argument("--response", type=int, default=32, help="tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--many", type=int, default=MANY, help="in flight (default: %(default)s)")
    add_outputs(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Measure, print and keep; returns the exit status."""
    arguments = build_parser().parse_args(list(argv))
    for name in ("requests", "concurrency", "prompt", "response", "rounds", "many"):
        if getattr(arguments, name) < (2 if name == "rounds" else 1):
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: give more")
    check_outputs(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    rows = {name: _shown(value) for name, value in found["figures"].items()}
    show(summary_table(rows, ("figure", "median"), found["what"]))
    seconds = {name: found["seconds"][name] for name in (OURS, THEIRS, IDLE, LOADED)}
    keep(arguments, found, seconds, "seconds of a round")
    return 0


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every way's seconds by round, and what follows from them."""
    from megarl.rollout.servers.client import ClientOptions
    from megarl.rollout.servers.server import RolloutServer
    from megarl.rollout.servers.worker import RolloutWorker

    write_model(folder)
    length = arguments.prompt + arguments.response + 8
    seconds: dict[str, list[float]] = {name: [] for name in (OURS, THEIRS, IDLE, LOADED)}
    options = ClientOptions(max_in_flight=arguments.concurrency)
    with (
        RolloutServer(str(folder), max_model_len=length, log_folder=folder) as server,
        RolloutWorker(server.address, options=options) as worker,
    ):
        for index in range(arguments.rounds + 1):
            both = {
                THEIRS: theirs(arguments, folder, server.address),
                OURS: ours(arguments, worker, index),
            }
            for name, taken in both.items() if index else ():  # the first round warms up
                seconds[name].append(taken)
        for name, taken in updates(arguments, folder, server.address, worker):
            seconds[name].append(taken)
    with stub() as port:
        alone = [ask(port, arguments.requests, 0) for _ in range(arguments.rounds)]
        spaced = [ask(port, arguments.concurrency, 20) for _ in range(arguments.rounds)]
        many = ask(port, arguments.many, 500)
    figures = _figures(arguments, seconds, alone, spaced, many)
    what = (
        f"{arguments.requests} samples of {arguments.prompt} + {arguments.response} tokens, "
        f"{arguments.concurrency} at a time, one server, {os.cpu_count()} cores"
    )
    return {"what": what, "figures": figures, "seconds": seconds, "alone": alone, "many": many}


def ours(arguments: argparse.Namespace, worker: Any, index: int) -> float:
    """Seconds of this client."""
    dice = random.Random(index)
    prompts = [
        [dice.randrange(4, 60) for _ in range(arguments.prompt)] for _ in range(arguments.requests)
    ]
    began = time.perf_counter()
    worker.generate(prompts, arguments.response)
    return time.perf_counter() - began


def theirs(arguments: argparse.Namespace, folder: Path, address: Any) -> float:
    """Seconds of vLLM's, as it says itself: its start does not count."""
    options = {
        "base-url": address.url,
        "model": str(folder),
        "dataset-name": "random",
        "random-input-len": arguments.prompt,
        "random-output-len": arguments.response,
        "num-prompts": arguments.requests,
        "max-concurrency": arguments.concurrency,
        "result-dir": str(folder),
        "result-filename": "theirs.json",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", VLLM_CLIENT, *words, "--save-result", "--disable-tqdm"],
        env=environment(OPENAI_API_KEY=address.api_key or ""),
        capture_output=True,
        text=True,
    )
    result = folder / "theirs.json"
    if done.returncode or not result.is_file():
        raise RunError(f"vLLM's benchmark client failed: {done.stderr[-1500:]}")
    found = json.loads(result.read_text())
    if found["completed"] != arguments.requests:
        raise RunError(f"vLLM's benchmark client finished {found['completed']} requests")
    result.unlink()
    return float(found["duration"])


def updates(
    arguments: argparse.Namespace, folder: Path, address: Any, worker: Any
) -> Iterator[tuple[str, float]]:
    """Seconds of a weight update, with nothing to do and with samples under way, in turns."""
    from megarl.trainer import PPOTrainer
    from megarl.transfer.servers import http_servers

    trainer = PPOTrainer(str(folder), kl_coef=0.0, adv_estimator="rloo")
    transfer = trainer.weight_transfer(http_servers([address], pause_mode="keep"))
    transfer.sync(1)
    version = 1
    for index in range(arguments.rounds):
        for name in (IDLE, LOADED):
            version += 1
            load = threading.Thread(target=ours, args=(arguments, worker, 1000 + index))
            if name == LOADED:
                load.start()
                time.sleep(0.2)
            began = time.perf_counter()
            transfer.sync(version)
            yield name, time.perf_counter() - began
            if name == LOADED:
                load.join()
    transfer.close()
    trainer.close()


@contextmanager
def stub() -> Iterator[int]:
    """A server without a model; its port."""
    with subprocess.Popen(
        STUB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stdin is not None
        yield int(running.stdout.readline())
        running.stdin.close()


def ask(port: int, count: int, delay: int) -> dict[str, float]:
    """So many samples at the same time from the stub, by a process of its own."""
    words = [*STUB, str(port), str(count), str(delay)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"the client alone failed: {done.stderr[-1500:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def environment(**added: str) -> dict[str, str]:
    """This process's, for a program beside it."""
    from megarl.runtime.environment import child_environment

    return child_environment(added)


def write_model(folder: Path) -> None:
    """A fresh Llama of 1 M parameters, with weights and a tokenizer of 64 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{index}" for index in range(2, 64))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, bos_token_id=None,
        max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _figures(
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    alone: list[dict[str, float]],
    spaced: list[dict[str, float]],
    many: dict[str, float],
) -> dict[str, float]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    requests, tokens = arguments.requests, arguments.requests * arguments.response
    overhead = statistics.median(one["seconds"] for one in alone) / requests
    return {
        "requests/s, this client": requests / median[OURS],
        "requests/s, vLLM's": requests / median[THEIRS],
        "tokens/s, this client, at most": tokens / median[OURS],
        "this client / vLLM's": median[THEIRS] / median[OURS],
        "client alone, ms a request": 1000 * overhead,
        "added latency p50, ms": 1000 * statistics.median(one["p50"] for one in spaced),
        "added latency p99, ms": 1000 * statistics.median(one["p99"] for one in spaced),
        f"{arguments.many} in flight, MiB": many["peak_mib"],
        f"{arguments.many} in flight, s (5 of them the server's)": many["seconds"],
        "weight update, idle, s": median[IDLE],
        "weight update, samples under way, s": median[LOADED],
    }


def _shown(value: float) -> float:
    return round(value, 4 if value < 10 else 1)
