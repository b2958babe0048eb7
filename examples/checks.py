"""An exported model in the libraries its users have: transformers and a fresh vLLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.stages import quiet_loading, run_python


def check_against_transformers(
    model: Path, token_ids: Sequence[int], logprobs: Sequence[float]
) -> float:
    """Largest difference between `logprobs` of tokens 1.. and those transformers computes, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet_loading()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([list(token_ids)])
    with torch.no_grad():
        table = loaded(ids).logits[0, :-1].log_softmax(-1)
    theirs = table.gather(1, ids[0, 1:, None])[:, 0]
    return float((theirs - torch.tensor(list(logprobs))).abs().max())


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


def check_fresh_vllm(model: Path, answers: Path) -> dict[str, int]:
    """How many greedy answers a new vLLM process gives token for token as in `answers` (jsonl)."""
    result = model.parent / "fresh-vllm.json"
    run_python(["-m", "examples.checks", str(model), str(answers), str(result)])
    return dict(json.loads(result.read_text()))


def answer_again(model: str, answers: str, result: str) -> None:
    """Answer the prompts of `answers` with a stock vLLM and write the count of equal answers."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import LLM, SamplingParams

    rows: list[dict[str, Any]] = [json.loads(line) for line in Path(answers).open()]
    on_cpu = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": 64 << 20}
    dtype = json.loads((Path(model) / "config.json").read_text())["dtype"]
    llm = LLM(model, dtype=dtype, enforce_eager=True, max_model_len=256, **on_cpu)
    longest = max(len(row["token_ids"]) for row in rows)
    greedy = SamplingParams(temperature=0.0, max_tokens=longest)
    outputs = llm.generate([row["prompt"] for row in rows], greedy, use_tqdm=sys.stderr.isatty())
    pairs = zip(rows, outputs, strict=True)
    same = sum(row["token_ids"] == list(out.outputs[0].token_ids) for row, out in pairs)
    Path(result).write_text(json.dumps({"same": same, "asked": len(rows)}))


if __name__ == "__main__":
    answer_again(*sys.argv[1:4])
