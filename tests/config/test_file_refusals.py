"""What `validate` refuses of checkpoints, tokenizers, data sets and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusing import check, refused
from safetensors.torch import load_file, save_file
from tiny_folder import change_config, write_folder, write_jsonl


def test_a_config_json_that_is_no_json(own: Path) -> None:
    (own / "model/config.json").write_text("{")
    refused(["actor.model.path", "config.json is not JSON"], own)


def test_shapes_that_disagree_with_config_json(own: Path) -> None:
    change_config(own / "model", intermediate_size=256)
    refused(["actor:", "[192, 128]", "asks for [256, 128]", "model.safetensors"], own)


def test_a_vocabulary_that_disagrees_with_the_weights(own: Path) -> None:
    change_config(own / "model", vocab_size=80)
    refused(["embed_tokens", "[64, 128]", "[80, 128]"], own)


def test_a_critic_of_another_vocabulary(own: Path) -> None:
    write_folder(own / "critic", vocab_size=128)
    refused(["critic.model.path", "128", "64"], own, f"critic.model.path={own / 'critic'}")


def test_a_tokenizer_larger_than_the_embedding(own: Path) -> None:
    write_folder(own / "model", vocab_size=32)
    refused(["tokenizer has 50 tokens", "vocab_size 32"], own)


def test_a_missing_tokenizer(own: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (own / "model" / name).unlink()
    refused(["actor.model.path", "tokenizer"], own)


def test_missing_truncated_and_incomplete_weights(own: Path) -> None:
    weights = own / "model/model.safetensors"
    # Copies: load_file maps the file that is about to be cut.
    tensors = {name: tensor.clone() for name, tensor in load_file(str(weights)).items()}
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(["actor:", "model.safetensors", "truncated", "actor.model.fresh=true"], own)
    weights.unlink()
    refused(["actor:", "no safetensors files"], own)
    del tensors["model.norm.weight"]
    save_file(tensors, str(weights))
    refused(["actor:", "1 tensors are missing", "model.norm.weight"], own)


def test_an_index_that_names_a_missing_shard(own: Path) -> None:
    index = own / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "shard-2.safetensors"}}))
    refused(["actor:", "shard-2.safetensors is missing"], own)
    for content in ("{", "[]", '{"weight_map": ["model.norm.weight"]}'):
        index.write_text(content)
        refused(["actor:", "index.json: cannot be read"], own)
    names = load_file(str(own / "model/model.safetensors"))
    save_file({"other": torch.zeros(1)}, str(own / "model/shard-1.safetensors"))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "shard-1.safetensors")}))
    refused(["actor:", "shard-1.safetensors", "is not in it", "the index says so"], own)


def test_fresh_models_need_no_weights_but_their_own_settings(own: Path) -> None:
    (own / "model/model.safetensors").unlink()
    refused(["critic:", "critic.model.fresh=true"], own, "actor.model.fresh=true")
    check(own, "actor.model.fresh=true", "critic.model.fresh=true")


def test_a_critic_from_a_reward_model_keeps_its_head(own: Path) -> None:
    architecture = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    write_folder(own / "critic", **architecture)
    plan = check(own, f"critic.model.path={own / 'critic'}")
    assert plan.critic is not None and plan.critic.shape.scalar_head == "score.weight"


def test_data_sets_that_cannot_be_used(own: Path) -> None:
    refused(["data.train_path is empty"], own, "data.train_path=''")
    refused(["data.train_path", "none.jsonl"], own, f"data.train_path={own / 'none.jsonl'}")
    (own / "empty.jsonl").write_text("")
    refused(["data.train_path", "empty"], own, f"data.train_path={own / 'empty.jsonl'}")
    refused(["data.eval_path", "empty"], own, f"data.eval_path={own / 'empty.jsonl'}")
    words = ["data.train_path", "'question'", "prompt, label", "line 1"]
    refused(words, own, "data.prompt_column=question")
    refused(["data.train_path", "'answer'"], own, "data.label_column=answer")
    refused(["max_prompt_length 1", "shortest has 2"], own, "data.max_prompt_length=1")
    refused(["rollout_batch_size 64", "32 prompts"], own, "data.rollout_batch_size=64")
    refused(["data.eval_path is empty"], own, purpose="eval")


def test_examples_for_fine_tuning(own: Path) -> None:
    write_jsonl(own / "rows.jsonl", question="w1 w2", response="w3")
    rows, column = f"data.train_path={own / 'rows.jsonl'}", "data.prompt_column=question"
    check(own, rows, column, purpose="sft")
    refused(["data.train_path", "'prompt'", "question"], own, rows, purpose="sft")
    refused(["data.train_path", "'response'", "prompt, label"], own, purpose="sft")
    batch = "algorithm.global_batch_size=64"
    refused(["64", "32 examples"], own, rows, column, batch, purpose="sft")


def test_preferences(own: Path) -> None:
    write_jsonl(own / "pairs.jsonl", prompt="w1 w2", chosen="w3", rejected="w4")
    pairs = f"data.train_path={own / 'pairs.jsonl'}"
    check(own, pairs, purpose="reward")
    refused(["data.eval_path", "'chosen'"], own, pairs, f"data.eval_path={own / 'train.jsonl'}",
            purpose="reward")  # fmt: skip
    refused(["data.train_path", "'better'"], own, pairs, "data.chosen_column=better",
            purpose="reward")  # fmt: skip


def test_rewards_that_cannot_be_had(own: Path) -> None:
    refused(["reward.function", "'exact'", "exact_match"], own, "reward.function=exact")
    (own / "mine.py").write_text("import nothing_of_that_name\n")
    refused(
        ["reward.function", "mine.py, line 1", "nothing_of_that_name"],
        own,
        f"reward.function={own / 'mine.py'}:score",
    )
    (own / "mine.py").write_text("def scored(prompts, responses): return []\n")
    refused(
        ["reward.function", "no 'score'", "'scored'"],
        own,
        f"reward.function={own / 'mine.py'}:score",
    )
    refused(["reward.function", "tolerence"], own, "reward.kwargs.tolerence=1")
    words = ["reward.function is exact_match", "data.label_column is null", "name the column"]
    refused(words, own, "data.label_column=null")
    (own / "mine.py").write_text(
        "def score(prompts, responses):\n    return [0.0] * len(prompts)\n"
    )
    check(own, "data.label_column=null", f"reward.function={own / 'mine.py'}:score")


def test_a_run_folder_that_is_a_file(own: Path) -> None:
    refused(["run.dir", "train.jsonl is a file"], own, f"run.dir={own / 'train.jsonl'}/run")


def save_changed(own: Path, **changes: torch.Tensor | None) -> None:
    """Write the weights again with tensors added; None takes one away."""
    file = own / "model/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(str(file)).items()} | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, str(file))


def test_weights_that_config_json_does_not_ask_for(own: Path) -> None:
    """A deeper model's, an untied one's, one with biases: none is read by half."""
    change_config(own / "model", num_hidden_layers=2)
    refused(["actor:", "18 tensors", "model.layers.2.", "num_hidden_layers"], own)
    change_config(own / "model", num_hidden_layers=4)
    save_changed(own, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)})
    refused(["actor:", "1 tensors", "q_proj.bias", "architectures"], own)


def test_a_tied_model_may_hold_its_embedding_twice(own: Path) -> None:
    change_config(own / "model", tie_word_embeddings=True)
    check(own)
    save_changed(own, **{"lm_head.weight": torch.ones(64, 128)})
    refused(["actor:", "lm_head.weight", "tie_word_embeddings"], own)


def test_tensors_that_every_model_computes_are_not_read(own: Path) -> None:
    save_changed(own, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)})
    check(own)


def test_a_tokenizer_of_another_model(own: Path) -> None:
    """Far too small, or with one id beyond the embedding."""
    refused_by = ["actor.model.path", "7 tokens", "vocab_size 64", "another model's"]
    write_folder(own / "model", num_words=5)
    refused(refused_by, own)
    write_folder(own / "model", num_words=48, vocab_size=512)
    refused(["50 tokens", "vocab_size 512", "another model's"], own)
    write_folder(own / "model")
    file = own / "model/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["w3"] = 64
    file.write_text(json.dumps(tokenizer))
    refused(["65 tokens", "vocab_size 64"], own)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": "2"},
        {"rope_theta": "abc"},
        {"rope_scaling": "linear"},
        {"architectures": 5},
    ],
    ids=str,
)
def test_config_json_with_values_of_another_type(own: Path, changes: dict[str, object]) -> None:
    change_config(own / "model", **changes)
    refused(["actor.model.path", "config.json"], own)


def test_a_generation_config_that_is_cut_off(own: Path) -> None:
    (own / "model/generation_config.json").write_text('{"eos_token_id": ')
    refused(["actor.model.path", "generation_config.json", "cannot be read"], own)


def test_half_a_surrogate_pair(own: Path) -> None:
    row = '{"prompt": "w1 \\ud800 w2", "label": "w3"}\n'
    (own / "odd.jsonl").write_text((own / "train.jsonl").read_text() + row)
    refused(["data.train_path", "line 33", "surrogate"], own, f"data.train_path={own}/odd.jsonl")


def test_data_that_the_reward_cannot_use(own: Path) -> None:
    refused(["data.train_path", "prompt_id 0", "`entry`"], own, "reward.function=reasoning_gym")
    write_jsonl(own / "words.jsonl", prompt="w1 w2", label="yes")
    words, numeric = f"data.train_path={own / 'words.jsonl'}", "reward.function=numeric_match"
    refused(["data.train_path", "prompt_id 0", "'yes'", "no number"], own, words, numeric)


def test_answers_that_are_no_texts(own: Path) -> None:
    for odd in (None, [{"role": "user", "content": "w1"}], True):
        write_jsonl(own / "odd.jsonl", prompt="w1", response=odd)
        words = ["data.train_path", "line 1", "'response'", "no text"]
        refused(words, own, f"data.train_path={own / 'odd.jsonl'}", purpose="sft")
    long = "data.max_prompt_length=1", "data.max_response_length=1"
    words = ["32 examples", "longer than 2 tokens", "raise them"]
    refused(words, own, *long, "data.response_column=label", purpose="sft")


def test_reward_classes_and_files_that_fail(own: Path) -> None:
    mine = f"reward.function={own / 'mine.py'}:Score"
    source = "class Score:\n    def __init__(self, size=1): self.size = 1 // size\n"
    (own / "mine.py").write_text(source + "    def __call__(self, prompts, responses): return []\n")
    refused(
        ["reward.function", "'size': 0", "ZeroDivisionError"], own, mine, "reward.kwargs.size=0"
    )
    (own / "mine.py").write_text("import sys\nsys.exit(3)\n")
    refused(["reward.function", "mine.py, line 2", "SystemExit"], own, mine)
    numeric = "reward.function=numeric_match", "reward.kwargs.tolerance=abc"
    refused(["reward.function", "tolerance is 'abc'"], own, *numeric)


def test_a_reward_may_import_what_lies_beside_it(own: Path) -> None:
    (own / "a_helper_beside.py").write_text("VALUE = 0.5\n")
    (own / "mine.py").write_text(
        "from a_helper_beside import VALUE\n"
        "def score(prompts, responses): return [VALUE] * len(prompts)\n"
    )
    check(own, f"reward.function={own / 'mine.py'}:score")
