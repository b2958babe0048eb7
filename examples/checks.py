"""An exported model in the libraries its users have: transformers and a fresh vLLM.

python -m examples.checks transformers RUN_DIR    # the log-probs of probe.json
python -m examples.checks vllm RUN_DIR            # the answers of the last evaluation
python -m examples.checks chat RUN_DIR HELDOUT    # the same of chats, by transformers
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOGPROB_TOLERANCE = 1e-4
QUESTIONS, WANTED_CLOSE, CLOSE_NATS = 10, 9, 0.5


def check_transformers(run: Path) -> None:
    """transformers computes, in fp32, the log-probs that Megatron left in probe.json."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet_loading()
    probe = json.loads((run / "probe.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    ids = torch.tensor([probe["token_ids"]])
    with torch.no_grad():
        table = loaded(ids).logits[0, :-1].log_softmax(-1)
    theirs = table.gather(1, ids[0, 1:, None])[:, 0]
    difference = float((theirs - torch.tensor(probe["logprobs"])).abs().max())
    say(f"transformers loads {run / 'model'}; largest log-prob difference {difference:.1e}")
    if not difference <= LOGPROB_TOLERANCE:
        raise SystemExit(f"Megatron and transformers differ by {difference} > {LOGPROB_TOLERANCE}")


def check_chat(run: Path, heldout: Path) -> None:
    """transformers finds the answers of the last evaluation to chats about as likely as its own.

    Where two tokens are about as likely, bf16 and fp32 may choose differently; a model that was
    exported wrong finds all that the run said unlikely.
    """
    trained = last_answers(run)[:QUESTIONS]
    rows = heldout.read_text().splitlines()[:QUESTIONS]
    chats = [json.loads(line)["prompt"] for line in rows]
    said = chat(run / "model", chats, [row["token_ids"] for row in trained])
    for messages, (text, _) in zip(chats, said, strict=True):
        say(f"{messages[-1]['content']} -> {text}")
    close = sum(gap < CLOSE_NATS for _, gap in said)
    same = sum(text == row["text"] for (text, _), row in zip(said, trained, strict=True))
    say(f"transformers, same answers: {same} of {QUESTIONS}, {close} to {CLOSE_NATS} nats")
    if close < WANTED_CLOSE:
        raise SystemExit(f"{WANTED_CLOSE} are wanted: the exported model is not the trained one")


def chat(
    model: Path, chats: Sequence[list[dict[str, str]]], answers: Sequence[Sequence[int]]
) -> list[tuple[str, float]]:
    """transformers' greedy answer to each chat (a list of messages), in fp32, and a gap.

    answers: token ids of the answers that the run gave. A gap, in nats, is by how much its least
    likely token is less likely than transformers' best one in its place: 0 where they agree.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_loading()
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    longest = max(map(len, answers))
    said = []
    for messages, answer in zip(chats, answers, strict=True):
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompt = inputs["input_ids"]
        output = loaded.generate(**inputs, max_new_tokens=longest, do_sample=False)
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        ids = torch.cat([prompt, torch.tensor([list(answer)])], dim=1)
        with torch.no_grad():
            logits = loaded(ids).logits[0, prompt.shape[1] - 1 : -1]
        chosen = logits.gather(1, torch.tensor(list(answer))[:, None])[:, 0]
        said.append((text, float((logits.max(1).values - chosen).max())))
    return said


def check_vllm(run: Path) -> None:
    """A stock vLLM gives the answers of the last evaluation again, token for token."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import LLM, SamplingParams

    rows, model = last_answers(run), run / "model"
    on_cpu = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": 64 << 20}
    dtype = json.loads((model / "config.json").read_text())["dtype"]
    llm = LLM(str(model), dtype=dtype, enforce_eager=True, max_model_len=256, **on_cpu)
    longest = max(len(row["token_ids"]) for row in rows)
    greedy = SamplingParams(temperature=0.0, max_tokens=longest)
    outputs = llm.generate([row["prompt"] for row in rows], greedy, use_tqdm=sys.stderr.isatty())
    pairs = zip(rows, outputs, strict=True)
    same = sum(row["token_ids"] == list(out.outputs[0].token_ids) for row, out in pairs)
    say(f"a fresh vLLM gives {same} of {len(rows)} answers token for token")
    if same < len(rows):
        raise SystemExit("the exported model does not answer as the trained one did")


def last_answers(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's last evaluation."""
    steps = json.loads((run / "summary.json").read_text())["steps"]
    lines = (run / f"answers-step{steps}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def quiet_loading() -> None:
    """No bars of transformers where nobody sees them move."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def say(text: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


CHECKS: dict[str, Any] = {
    "transformers": check_transformers,
    "vllm": check_vllm,
    "chat": check_chat,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]](*map(Path, sys.argv[2:]))
