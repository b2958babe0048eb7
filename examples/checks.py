"""An exported model in the libraries its users have: transformers and a fresh vLLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.stages import run_python


def check_against_transformers(
    model: Path, token_ids: Sequence[int], logprobs: Sequence[float]
) -> float:
    """Largest difference between `logprobs` of tokens 1.. and those transformers computes, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([list(token_ids)])
    with torch.no_grad():
        table = loaded(ids).logits[0, :-1].log_softmax(-1)
    theirs = table.gather(1, ids[0, 1:, None])[:, 0]
    return float((theirs - torch.tensor(list(logprobs))).abs().max())


def chat(model: Path, chats: Sequence[list[dict[str, str]]], max_new_tokens: int) -> list[str]:
    """transformers' greedy answers to chats (each a list of messages), one at a time, in fp32.

    In bf16 the two best logits are often the same number, and the kernel decides.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    answers = []
    for messages in chats:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = loaded.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


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
