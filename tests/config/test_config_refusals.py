"""What `validate` refuses of settings, meshes and engines: messages name key, numbers and cure."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from refusing import check, refused
from tiny_folder import change_config, write_folder

from megarl.validate import engines


def test_what_is_right_becomes_a_plan(made: Path) -> None:
    plan = check(
        made,
        "actor.mesh=t2p2",
        "critic.mesh=p2d2",
        "reference.mesh=t2",
        "rollout.tensor_parallel_size=2",
        "algorithm.kl_coef=0.05",
    )
    assert plan.actor.layout.describe() == "t2p2d1"
    assert plan.critic is not None and plan.critic.layout.describe() == "t1p2d2"
    assert plan.critic.shape.scalar_head == "score.weight"
    assert plan.reference is not None and plan.reference.layout.dp == 2
    assert plan.rollout_ranks == (0, 1, 2, 3)
    assert plan.pools == ((0, 1, 2, 3),)


def test_roles_exist_only_where_something_reads_them(made: Path) -> None:
    plan = check(made, "algorithm.adv_estimator=grpo", "data.n_samples_per_prompt=2")
    assert plan.critic is None and plan.reference is None
    kl = ["algorithm.use_kl_loss=true", "algorithm.adv_estimator=rloo"]
    plan = check(made, "data.n_samples_per_prompt=2", *kl)
    assert plan.reference is not None and plan.reference.layout == plan.actor.layout
    plan = check(made, "resources.actor_gpus=[0]", purpose="eval", files=False)
    assert plan.critic is None and plan.actor.ranks == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("purpose", "words", "overrides"),
    [
        (
            "sft",
            ["resources.actor_gpus is [0, 1]", "4 ranks", "run.world_size"],
            ["resources.actor_gpus=[0,1]"],
        ),
        (
            "sft",
            ["checkpoint.best_metric is 'eval/los'", "one of eval/loss, eval/probability"],
            ["checkpoint.best_metric=eval/los"],
        ),
        (
            "reward",
            ["data.indexed.blend is given", "`megarl pretrain`", "`megarl reward` reads"],
            ["data.train_path=''", "data.indexed.blend=[corpus]"],
        ),
    ],
)
def test_what_is_another_commands(
    purpose: str, words: list[str], overrides: list[str], made: Path
) -> None:
    refused(words, made, *overrides, purpose=purpose, files=False)


def test_roles_on_pools_of_their_own(made: Path) -> None:
    ranks = ["resources.actor_gpus=[0,1,2,3]", "resources.critic_gpus=[4,5]"]
    plan = check(made, *ranks, "actor.mesh=t2p2", "critic.mesh=p2", world_size=6)
    assert plan.pools == ((0, 1, 2, 3), (4, 5))
    assert plan.critic is not None and plan.critic.layout.pp == 2


MESHES = {
    "a first stage without layers": (
        ["actor.mesh", "needs a layer", "[0, 4]"],
        ["actor.mesh=p2", "actor.mesh.num_layers_in_first_pipeline_stage=0"],
    ),
    "a first stage with all layers": (
        ["actor.mesh", "needs a layer", "[4, 0]"],
        ["actor.mesh=p2", "actor.mesh.num_layers_in_first_pipeline_stage=4"],
    ),
    "a first stage without a pipeline": (
        ["actor.mesh", "pipelines of 2 stages"],
        ["actor.mesh=t2", "actor.mesh.num_layers_in_first_pipeline_stage=3"],
    ),
    "tensor size and KV groups": (
        ["actor.mesh.tensor_model_parallel_size", "4", "num_query_groups 2", "takes 1, 2"],
        ["actor.mesh=t4"],
    ),
    "tensor size and heads of the critic": (
        ["critic.mesh", "4", "num_query_groups 2"],
        ["critic.mesh=t4"],
    ),
    "stages and layers": (
        ["actor.mesh (t1p3d1)", "4 layers", "3 pipeline stages"],
        ["actor.mesh=p3", "run.world_size=3"],
    ),
    "virtual stages and layers": (
        ["actor.mesh", "virtual", "2 x virtual_pipeline_model_parallel_size 3", "4"],
        ["actor.mesh=p2v3"],
    ),
    "virtual stages without a pipeline": (
        ["virtual_pipeline_model_parallel_size 2", "pipeline_model_parallel_size is 1"],
        ["actor.mesh=v2"],
    ),
    "uneven stages": (
        ["actor.mesh", "4 layers", "{0: 5}"],
        ["actor.mesh=p2", "actor.mesh.num_layers_in_first_pipeline_stage=5"],
    ),
    "mesh and world size": (
        ["actor.mesh", "tensor 2 x pipeline 4 x context 1 = 8", "4 ranks"],
        ["actor.mesh=t2p4"],
    ),
    "mesh of the reference and world size": (
        ["reference.mesh", "= 8", "4 ranks"],
        ["reference.mesh=t2p4", "algorithm.kl_coef=0.1"],
    ),
    "data-parallel size": (
        ["actor.mesh.data_parallel_size is 3", "leaves 2", "6 ranks"],
        ["actor.mesh=t2d3"],
    ),
    "size below 1": (["actor.mesh.tensor_model_parallel_size is 0"], ["actor.mesh=t0"]),
    "context parallel": (
        ["actor.mesh.context_parallel_size is 2", "not split", "set it to 1"],
        ["actor.mesh=c2"],
    ),
    "experts of a dense model": (["expert_model_parallel_size 2", "no experts"], ["actor.mesh=e2"]),
    "rollout size and ranks": (
        ["rollout.tensor_parallel_size 3", "4 ranks", "1, 2, 4"],
        ["rollout.tensor_parallel_size=3"],
    ),
    "rollout size and heads": (
        ["rollout.tensor_parallel_size", "8", "num_attention_heads 4", "1, 2, 4"],
        ["rollout.tensor_parallel_size=8", "run.world_size=8"],
    ),
    "overlapping ranks": (
        ["actor_gpus [0, 1, 2]", "critic_gpus [2, 3]", "rank 2"],
        ["resources.actor_gpus=[0,1,2]", "resources.critic_gpus=[2,3]"],
    ),
    "missing ranks": (["rank 3 of 4"], ["resources.actor_gpus=[0,1,2]"]),
    "ranks of a critic that nothing needs": (
        ["resources.critic_gpus [2, 3]", "grpo has no critic"],
        [
            "resources.actor_gpus=[0,1]",
            "resources.critic_gpus=[2,3]",
            "algorithm.adv_estimator=grpo",
            "data.n_samples_per_prompt=2",
        ],
    ),
    "ranks of a reference that nothing needs": (
        ["resources.reference_gpus [2, 3]", "kl_coef is 0"],
        ["resources.actor_gpus=[0,1]", "resources.reference_gpus=[2,3]"],
    ),
    "ranks of a reward model that is not there": (
        ["resources.reward_gpus [2, 3]", "reward.model.path is empty"],
        ["resources.actor_gpus=[0,1]", "resources.reward_gpus=[2,3]"],
    ),
}


@pytest.mark.parametrize(("words", "overrides"), MESHES.values(), ids=MESHES.keys())
def test_meshes_that_do_not_fit(made: Path, words: list[str], overrides: list[str]) -> None:
    sizes = [int(o.removeprefix("run.world_size=")) for o in overrides if "world_size" in o]
    refused(words, made, *overrides, world_size=(sizes or [4])[0], files=False)


SETTINGS = {
    "an unknown policy loss": (
        ["algorithm.policy_loss", "'gpso'", "did you mean 'gspo'"],
        ["algorithm.policy_loss=gpso"],
    ),
    "an entropy bonus below nothing": (
        ["algorithm.entropy_coef is -0.01", "at least 0"],
        ["algorithm.entropy_coef=-0.01"],
    ),
    "a penalty that steps would lose": (
        ["grpo_process", "algorithm.kl_coef 0.1", "use_kl_loss"],
        [
            "algorithm.adv_estimator=grpo_process",
            "algorithm.kl_coef=0.1",
            "data.n_samples_per_prompt=2",
        ],
    ),
    "a penalty of a name": (
        ["algorithm.kl_penalty is 'k3+'", "k1, k2, k3"],
        ["algorithm.kl_penalty=k3+"],
    ),
    "a weight that is no number": (
        ["reward.function_coef is nan", "finite"],
        ["reward.function_coef=nan"],
    ),
    "another reward's weight that is no number": (
        ["reward.extra_functions.form.coef is inf", "finite"],
        ["reward.extra_functions={form: {function: exact_match, coef: .inf}}"],
    ),
    "covariances between nothing": (
        ["algorithm.clip_cov_lb 5.0", "clip_cov_ub 1.0"],
        ["algorithm.clip_cov_lb=5", "algorithm.clip_cov_ub=1"],
    ),
    "filtered groups of one": (
        ["filter_groups.enable", "n_samples_per_prompt is 1", "sample 2"],
        ["algorithm.filter_groups.enable=true", "data.n_samples_per_prompt=1"],
    ),
    "a filter's metric": (
        ["filter_groups.metric is 'acc'", "accuracy, reward"],
        ["algorithm.filter_groups.metric=acc"],
    ),
    "importance weights of a level": (
        ["algorithm.rollout_is is 'tokens'", "token, sequence or null"],
        ["algorithm.rollout_is=tokens"],
    ),
    "rejection below above": (
        ["rollout_rs_threshold", "0.5", "3.0"],
        [
            "algorithm.rollout_rs=token",
            "algorithm.rollout_rs_threshold=0.5",
            "algorithm.rollout_rs_threshold_lower=3",
        ],
    ),
    "a veto of 1": (
        ["rollout_token_veto_threshold is 1.0", "below 1"],
        ["algorithm.rollout_token_veto_threshold=1.0"],
    ),
    "a clip of one number": (
        ["reward.clip is [1.0]", "[low, high]"],
        ["reward.clip=[1.0]"],
    ),
    "a clip upside down": (["reward.clip is [1.0, -1.0]"], ["reward.clip=[1,-1]"]),
    "a buffer longer than responses": (
        ["reward.overlong_buffer_len is 5000", "data.max_response_length"],
        ["reward.overlong_buffer_len=5000"],
    ),
    "options of no penalty": (
        ["reward.length_penalty_kwargs", "right_short", "take cosine"],
        ["reward.length_penalty_kwargs={right_short: 2}"],
    ),
    "an option that cosine has not": (
        ["length_penalty_kwargs.short is unknown", "right_short"],
        ["reward.length_penalty=cosine", "reward.length_penalty_kwargs={short: 2}"],
    ),
    "lengths of a greedy answer": (
        ["reward.length_penalty is group", "adv_estimator remax", "take cosine"],
        ["reward.length_penalty=group", "algorithm.adv_estimator=remax"],
    ),
    "another reward without a function": (
        ["reward.extra_functions.format.function is empty"],
        ["reward.extra_functions={format: {coef: 0.1}}"],
    ),
    "another reward with an unknown key": (
        ["reward.extra_functions.format.weight", "no setting"],
        ["reward.extra_functions={format: {function: exact_match, weight: 0.1}}"],
    ),
    "another reward that is no group": (
        ["reward.extra_functions.format", "function, kwargs, coef"],
        ["reward.extra_functions={format: json_format}"],
    ),
    "another reward of the judge's name": (
        ["reward.extra_functions.exact_match", "is taken"],
        [
            "reward.function=exact_match",
            "reward.extra_functions={exact_match: {function: exact_match}}",
        ],
    ),
    "a best metric and nothing to evaluate on": (
        ["checkpoint.best_metric", "eval/accuracy", "eval_path ''", "best_metric=null"],
        ["checkpoint.best_metric=eval/accuracy", "data.eval_path=''"],
    ),
    "an accuracy that a reward model alone does not give": (
        ["checkpoint.best_metric", "reward model alone", "eval/reward_mean"],
        [
            "checkpoint.best_metric=eval/accuracy",
            "data.eval_path=x.jsonl",
            "reward.model.path=judge",
        ],
    ),
    "a best metric that no evaluation gives": (
        ["checkpoint.best_metric", "'reward_mean'", "eval/"],
        ["checkpoint.best_metric=reward_mean"],
    ),
    "a best metric of samples that nobody asks for": (
        ["checkpoint.best_metric is 'eval/pass@4'", "eval/accuracy", "n_samples above 0"],
        ["checkpoint.best_metric=eval/pass@4"],
    ),
    "a best metric of another number of samples": (
        ["checkpoint.best_metric is 'eval/pass@3/x'", "eval/pass@2, eval/pass@4, eval/maj@4"],
        ["checkpoint.best_metric=eval/pass@3/x", "evaluation.n_samples=4"],
    ),
    "samples that a reward model alone does not judge": (
        ["evaluation.n_samples is 4", "reward model alone", "no pass@k", "reward.function"],
        ["evaluation.n_samples=4", "reward.model.path=judge"],
    ),
    "more right ones than samples": (
        ["evaluation.pass_at has 8", "evaluation.n_samples is 4", "at most n_samples"],
        ["evaluation.n_samples=4", "evaluation.pass_at=[1,8]"],
    ),
    "pass@k without samples": (
        ["evaluation.pass_at has 2", "evaluation.n_samples is 0", "sample more"],
        ["evaluation.pass_at=[2]"],
    ),
    "pass@0": (
        ["evaluation.pass_at has 0", "at least 1"],
        ["evaluation.n_samples=4", "evaluation.pass_at=[0,1]"],
    ),
    "fewer than no samples": (
        ["evaluation.n_samples is -1", "at least 0"],
        ["evaluation.n_samples=-1"],
    ),
    "greedy samples": (
        ["evaluation.temperature is 0.0", "above 0"],
        ["evaluation.temperature=0"],
    ),
    "samples of no candidates": (["evaluation.top_k is 0", "-1 for all"], ["evaluation.top_k=0"]),
    "samples of no nucleus": (["evaluation.top_p is 0.0", "above 0"], ["evaluation.top_p=0"]),
    "groups and data-parallel ranks": (
        ["global_batch_size 16 holds 2 prompts", "n_samples_per_prompt 8", "4 data", "least 32"],
        ["data.n_samples_per_prompt=8", "actor.mesh=t1"],
    ),
    "a seed that numpy cannot take": (["run.seed is -5", "at most 4294967295"], ["run.seed=-5"]),
    "batch and samples": (
        ["algorithm.global_batch_size 24", "16 x", "= 16 samples", "take 16"],
        ["algorithm.global_batch_size=24"],
    ),
    "group and batch": (
        ["data.n_samples_per_prompt 3", "global_batch_size 16", "take 12 or 24"],
        ["data.n_samples_per_prompt=3"],
    ),
    "prompts and replicas": (
        ["data.rollout_batch_size 2", "4 rollout replicas", "at least 4"],
        ["data.rollout_batch_size=2", "algorithm.global_batch_size=2"],
    ),
    "token budget": (
        ["algorithm.max_tokens_per_gpu 100", "64 + data.max_response_length 64 = 128"],
        ["algorithm.use_dynamic_batch_size=true", "algorithm.max_tokens_per_gpu=100"],
    ),
    "lengths and positions": (
        ["data.max_prompt_length 200", "= 264", "max_position_embeddings 256"],
        ["data.max_prompt_length=200"],
    ),
    "estimator": (
        ["algorithm.adv_estimator 'grpoo'", "did you mean 'grpo'?"],
        ["algorithm.adv_estimator=grpoo"],
    ),
    "aggregation": (
        ["algorithm.loss_agg_mode is 'mean'", "token-mean"],
        ["algorithm.loss_agg_mode=mean"],
    ),
    "KL loss type": (["algorithm.kl_loss_type is 'k4'", "k3"], ["algorithm.kl_loss_type=k4"]),
    "KL control type": (
        ["algorithm.kl_ctrl.type is 'adapt'", "did you mean 'adaptive'?"],
        ["algorithm.kl_ctrl.type=adapt"],
    ),
    "dtype": (["critic.model.dtype is 'fp16'", "bfloat16"], ["critic.model.dtype=fp16"]),
    "rollout dtype": (["rollout.dtype is 'int8'", "or null"], ["rollout.dtype=int8"]),
    "engine": (["rollout.engine is 'vlm'", "did you mean 'vllm'?"], ["rollout.engine=vlm"]),
    "schedule": (
        ["actor.optimizer.lr_decay_style is 'cos'", "cosine"],
        ["actor.optimizer.lr_decay_style=cos"],
    ),
    "recompute": (
        ["actor.model.recompute_granularity is 'all'", "selective, full or null"],
        ["actor.model.recompute_granularity=all"],
    ),
    "one sample to a group": (
        ["grpo", "data.n_samples_per_prompt is 1", "2 or more"],
        ["algorithm.adv_estimator=grpo"],
    ),
    "warm-up of no critic": (
        ["algorithm.critic_warmup is 3", "rloo has no critic"],
        [
            "algorithm.adv_estimator=rloo",
            "algorithm.critic_warmup=3",
            "data.n_samples_per_prompt=2",
        ],
    ),
    "KL loss of weight 0": (
        ["use_kl_loss is true", "kl_loss_coef is 0"],
        ["algorithm.use_kl_loss=true", "algorithm.kl_loss_coef=0"],
    ),
    "a bonus for being cut off": (
        ["reward.missing_eos_penalty is -0.5"],
        ["reward.missing_eos_penalty=-0.5"],
    ),
    "a rate that would rise": (
        ["actor.optimizer.min_lr 0.1", "lr 0.01", "lower min_lr"],
        ["actor.optimizer.min_lr=0.1", "actor.optimizer.lr=0.01"],
    ),
    "nothing left to decay": (
        ["critic.optimizer.lr_warmup_steps 5", "lr_decay_steps 5"],
        ["critic.optimizer.lr_warmup_steps=5", "critic.optimizer.lr_decay_steps=5"],
    ),
    "an alias of another type": (
        ["weight_sync.alias", "actor.model.dtype is float32", "rollout.dtype bfloat16"],
        ["weight_sync.alias=true", "rollout.dtype=bfloat16"],
    ),
    "an alias that sleeps": (
        ["weight_sync.alias and rollout.enable_sleep_mode are both true"],
        ["weight_sync.alias=true", "rollout.enable_sleep_mode=true"],
    ),
    "an alias on other ranks": (
        ["weight_sync.alias", "actor is on ranks [0, 1]", "rollout on [2, 3]", "take turns"],
        [
            "weight_sync.alias=true",
            "resources.actor_gpus=[0,1]",
            "resources.critic_gpus=[0,1]",
            "resources.rollout_gpus=[2,3]",
        ],
    ),
    "adaptive from 0": (
        ["kl_ctrl.type is adaptive", "kl_coef is 0"],
        ["algorithm.kl_ctrl.type=adaptive"],
    ),
    "nucleus with limits": (
        ["rollout.top_p is 0.9", "logprob_diff_mean_limit (0.2)", "set both limits to 0"],
        ["rollout.top_p=0.9"],
    ),
    "top k with limits": (["rollout.top_k is 50", "top_k=-1"], ["rollout.top_k=50"]),
    "top k of 0": (["rollout.top_k is 0"], ["rollout.top_k=0"]),
    "dual clip": (
        ["algorithm.clip_ratio_c is 1.0", "above 1"],
        ["algorithm.clip_ratio_c=1.0"],
    ),
    "clip of 1": (["algorithm.clip_ratio is 1.0", "below 1"], ["algorithm.clip_ratio=1.0"]),
    "temperature": (["rollout.temperature is 0.0", "above 0"], ["rollout.temperature=0"]),
    "gamma": (["algorithm.gamma is 1.1", "at most 1"], ["algorithm.gamma=1.1"]),
    "learning rate that is no number": (
        ["actor.optimizer.lr is nan", "at least 0"],
        ["actor.optimizer.lr=nan"],
    ),
    "steps": (["run.steps is 0", "at least 1"], ["run.steps=0"]),
    "no model": (["actor.model.path is empty"], ["actor.model.path=''"]),
    "no folder": (
        ["actor.model.path", "some/hub-name/config.json", "Hugging Face folder"],
        ["actor.model.path=some/hub-name"],
    ),
}


@pytest.mark.parametrize(("words", "overrides"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_do_not_fit(made: Path, words: list[str], overrides: list[str]) -> None:
    refused(words, made, *overrides, files=False)


def test_samples_of_an_evaluation_are_refused_there_too(made: Path) -> None:
    for setting in ("evaluation.pass_at=[2]", "evaluation.top_k=0"):
        refused([setting.partition("=")[0]], made, setting, purpose="eval", files=False)
    check(made, "evaluation.pass_at=[2]", purpose="sft", files=False)


def test_samples_of_one_nucleus_and_another(made: Path) -> None:
    """Training wants all probabilities, an evaluation does not."""
    samples = ["evaluation.n_samples=4", "evaluation.pass_at=[3]", "evaluation.top_p=0.9"]
    best = ["checkpoint.best_metric=eval/pass@3", f"data.eval_path={made / 'train.jsonl'}"]
    check(made, *samples, "evaluation.top_k=20", *best, files=False)


def test_a_best_metric_of_one_source(own: Path) -> None:
    """Among those of the prompts that are evaluated, where there are several."""
    rows = [{"prompt": "w1", "label": "w3", "source": f"a/{i % 2}" if i else "b"} for i in range(9)]
    heldout = own / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, best = f"data.eval_path={heldout}", "checkpoint.best_metric=eval/accuracy"
    check(own, path, f"{best}/a/1")
    words = ["checkpoint.best_metric is 'eval/accuracy/a/1'", "b: take one of eval/accuracy"]
    refused(words, own, path, f"{best}/a/1", "data.eval_size=1")
    listed = "a/0, a/1, b: take one of eval/accuracy, eval/accuracy/a/0"
    refused(["9 prompts", listed], own, path, f"{best}/c")


def test_limits_that_are_off_allow_a_nucleus(made: Path) -> None:
    off = ["observe.logprob_diff_mean_limit=0", "observe.logprob_diff_p99_limit=0"]
    check(made, "rollout.top_p=0.9", *off, files=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a rule of vLLM without CUDA")
def test_small_heads_and_vllm_on_cpu(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", head_dim=16)
    words = ["rollout.engine is vllm", "head_dim 16", "multiples of 32", "engine=transformers"]
    refused(words, tmp_path, files=False)
    check(tmp_path, "rollout.engine=transformers", files=False)


SCALAR = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}


def test_a_reward_model(own: Path) -> None:
    """A pool and a mesh of its own; a language model, another vocabulary, no head are refused."""
    rewarded, path = own / "rewarded", f"reward.model.path={own / 'rewarded'}"
    write_folder(rewarded)
    refused(["reward.model.path", "LlamaForCausalLM", "num_labels 1"], own, path, files=False)
    change_config(rewarded, **SCALAR)
    refused(["reward: ", "score.weight"], own, path)
    shutil.rmtree(rewarded)
    write_folder(rewarded, vocab_size=128, **SCALAR)
    refused(["reward.model.path", "vocab_size 128", "64"], own, path, files=False)
    shutil.rmtree(rewarded)
    write_folder(rewarded, **SCALAR)
    pools = ["resources.actor_gpus=[0,1]", "resources.reward_gpus=[2,3]", "reward.mesh=t2"]
    plan = check(own, path, *pools)
    assert plan.reward is not None
    assert plan.reward.ranks == (2, 3) and plan.reward.layout.tp == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPTJForCausalLM"]}, ["GPTJForCausalLM", "LlamaForCausalLM"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3", "num_attention_heads 4"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["'yarn'", "llama3"]),
        ({"vocab_size": 0}, ["vocab_size is 0"]),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, ["reward model"]),
    ],
)
def test_a_model_that_is_not_supported(
    own: Path, changes: dict[str, object], words: list[str]
) -> None:
    change_config(own / "model", **changes)
    refused(["actor.model.path", str(own / "model"), *words], own, files=False)


def test_a_sliding_window_shorter_than_a_sample(own: Path) -> None:
    change_config(own / "model", sliding_window=100)
    refused(["64 = 128 tokens", "sliding_window of 100"], own, files=False)
    check(own, "data.max_prompt_length=36", files=False)
    change_config(own / "model", use_sliding_window=False)
    check(own, files=False)


def test_engines_that_cannot_do_it(own: Path) -> None:
    two = "rollout.tensor_parallel_size=2"
    refused(["tensor_parallel_size is 2", "transformers"], own, "rollout.engine=transformers", two)
    sleeping = ["rollout.enable_sleep_mode is true", "CPUs", "set it to false"]
    if not torch.cuda.is_available():
        refused(sleeping, own, "rollout.enable_sleep_mode=true")
    scripted = ["rollout.engine=scripted", f"rollout.engine_args.script={own / 'script.jsonl'}"]
    refused(["rollout.engine_args.script", "jsonl"], own, *scripted)
    (own / "script.jsonl").write_text("")
    refused(["weight_sync.canary is true"], own, *scripted)
    check(own, *scripted, "weight_sync.canary=false")


def test_arguments_of_vllm(made: Path) -> None:
    """Found in vLLM's sources: a name it does not have, and one that the engine sets itself."""
    refused(
        ["rollout.engine_args.blok_size", "did you mean block_size?"],
        made,
        "rollout.engine_args.blok_size=16",
    )
    refused(
        ["rollout.engine_args.max_model_len", "leave it out"],
        made,
        "rollout.engine_args.max_model_len=64",
    )
    check(made, "rollout.engine_args.block_size=16")


@pytest.mark.parametrize(
    ("package", "key"), [("vllm", "rollout.engine"), ("tensorboard", "observe.use_tensorboard")]
)
def test_packages_that_are_missing(
    own: Path, package: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == package else found(name, *a)
    )
    refused([key, "not installed"], own)


def test_a_gpu_without_its_kernels(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megarl.validate.engines.on_cuda", lambda: True)
    monkeypatch.setattr("megarl.native.cuda_available", lambda: False)
    refused(["computes on CUDA", "built without its CUDA part", "make build"], made, files=False)
    monkeypatch.setattr("megarl.native.cuda_available", lambda: True)
    check(made, files=False)


def test_packed_rows_under_transformer_engine(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers would let samples see each other."""
    monkeypatch.setattr(engines, "has_transformer_engine", lambda: True)
    check(made, files=False)
    refused(["algorithm.sequence_packing", "TransformerEngine"], made,
            "algorithm.sequence_packing=true", files=False)  # fmt: skip
