"""Every setting of a run, with unit and default: one dataclass per part.

The string under a field is its documentation; `--help` prints it. Lists of choices are checked
in `validate`. `None` means: derived, or off, as the text says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megarl.config.schema_servers import ClientConfig, LaunchConfig


@dataclass
class MeshConfig:
    """The 3D mesh of one role; data parallelism fills what is left of the pool.

    Shorthand: t2p2d4 (also c, v, e, et, +sp), as in `actor.mesh=t2p2`.
    """

    tensor_model_parallel_size: int = 1
    """Ranks that share each layer's matrices."""
    pipeline_model_parallel_size: int = 1
    """Pipeline stages."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per stage (interleaved schedule); None is off."""
    context_parallel_size: int = 1
    """Ranks that share one sequence; only 1 as yet."""
    expert_model_parallel_size: int = 1
    """Ranks that share the experts of one layer."""
    expert_tensor_parallel_size: int = 1
    """Tensor parallel size inside one expert."""
    sequence_parallel: bool = False
    """Split norm and residual activations over the tensor ranks."""
    num_layers_in_first_pipeline_stage: int | None = None
    """Layers of the first stage, where stages are uneven."""
    num_layers_in_last_pipeline_stage: int | None = None
    """Layers of the last stage, where stages are uneven."""
    data_parallel_size: int | None = None
    """Model replicas; None: as many as the pool holds. A number is only checked against that."""


@dataclass
class OptimizerConfig:
    """Adam and its schedule, by Megatron-Core."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: str = "constant"
    """constant, linear, cosine or inverse-square-root."""
    lr_warmup_steps: int = 0
    """Optimizer steps of linear warm-up from 0."""
    lr_decay_steps: int | None = None
    """Optimizer steps until min_lr; None: the whole run."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Term added to the denominator."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradient; 0 is off."""
    use_distributed_optimizer: bool = False
    """Shard optimizer states over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass goes on."""
    optimizer_offload: bool = False
    """Keep Adam's states and fp32 main weights in (pinned) host memory but for the updates."""
    grad_offload: bool = False
    """Keep gradients in (pinned) host memory but for the updates."""


@dataclass
class ModelConfig:
    """How a role's Megatron model is built."""

    path: str = ""
    """Hugging Face folder (config.json, safetensors, tokenizer); empty: the actor's."""
    dtype: str = "float32"
    """float32, or bfloat16 with fp32 main weights and fp32 gradients."""
    recompute_granularity: str | None = None
    """None, selective (attention only) or full (whole layers)."""
    fresh: bool = False
    """Start from new random weights (seeded by tensor name) instead of the folder's."""


@dataclass
class TrainedRoleConfig:
    """A role that is trained: model, mesh, optimizer."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Its mesh."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Its optimizer."""


@dataclass
class FrozenRoleConfig:
    """A role that only scores: model and mesh."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    mesh: MeshConfig | None = None
    """Its mesh; None: the actor's."""


@dataclass
class RolloutConfig:
    """The rollout engine; names are vLLM's own."""

    engine: str = "vllm"
    """vllm, in the run's own processes; server: vLLM servers, which the run starts or finds;
    transformers (slow, for machines without vLLM) or scripted (tests)."""
    servers: list[str] = field(default_factory=list)
    """server: their addresses, http://host:port each."""
    servers_file: str | None = None
    """server: a file with an address per line, read before each weight sync: servers join and leave
    while the run goes on."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """server: those that the run starts."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """server: how they are asked."""
    max_staleness: int = 0
    """server: syncs that may lie between the weights that made a sample and those that learn from
    it. 0: generation and training take turns; 1: the next step's samples are made meanwhile; more:
    further steps'."""
    partial_rollout: bool = False
    """With max_staleness: unfinished samples go on with new weights after a sync, which waits for
    them otherwise."""
    tensor_parallel_size: int = 1
    """Ranks that share each layer's matrices; a pool holds as many replicas as fit."""
    pipeline_parallel_size: int = 1
    """Pipeline stages of a replica."""
    enable_expert_parallel: bool = False
    """Deal whole experts over the ranks of a replica, instead of cutting each of them."""
    dtype: str | None = None
    """Type of the rollout weights; None: the actor's."""
    temperature: float = 1.0
    """Sampling temperature of training rollouts; log-probs are taken after it."""
    top_p: float = 1.0
    """Nucleus size; below 1 the mismatch limits must be off."""
    top_k: int = -1
    """Largest number of candidates; -1 is all, and training wants all."""
    kv_cache_megabytes: int = 256
    """Memory of the key/value cache per rank on CPU."""
    gpu_memory_utilization: float = 0.5
    """Share of GPU memory that vLLM may take."""
    max_num_seqs: int = 256
    """Sequences decoded at the same time, per replica."""
    max_num_batched_tokens: int = 8192
    """Tokens per engine step, per replica."""
    enforce_eager: bool = True
    """No CUDA graphs, no compilation."""
    enable_sleep_mode: bool = False
    """On GPUs: vLLM gives its memory back (weights and cache) between a generation and the sync
    before the next."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Passed to vllm.LLM as they are, or to the servers that the run starts."""


@dataclass
class IndexedDataConfig:
    """Megatron's indexed data sets (.bin and .idx), for pretraining."""

    blend: list[Any] = field(default_factory=list)
    """Prefixes (paths without .bin and .idx), each read in proportion to its tokens, or
    [weight, prefix] each."""
    split: str = "99,1,0"
    """Shares of the documents for training, evaluation and neither, in their order in the file."""
    seq_length: int = 2048
    """Tokens that a sample teaches; it has one more. Documents are strung together and cut."""
    eod_mask_loss: bool = False
    """Leave out what is predicted from an end-of-document token: the next document's first token.
    Attention and positions run across documents in either case."""
    cache_dir: str | None = None
    """Folder for the order of samples, made once and read by later starts; None: index_cache in
    run.dir. It may be a folder of each node's own."""


@dataclass
class DataConfig:
    """Prompts."""

    train_path: str = ""
    """jsonl or parquet file with training prompts."""
    eval_path: str = ""
    """jsonl or parquet file with held-out prompts; empty: no evaluation."""
    prompt_column: str = "prompt"
    """Column with the prompt: text, or a list of chat messages."""
    apply_chat_template: bool = False
    """Send plain text through the chat template too, as one user message."""
    label_column: str | None = "label"
    """Column with the reference answer; in pretraining what is learned after the prompt (dotted
    paths reach into objects); None: there is none, and pretraining learns all of the prompt."""
    response_column: str = "response"
    """Column with the answer that `megarl sft` learns after the prompt."""
    messages_column: str | None = None
    """Column with whole conversations, of which `megarl sft` learns every turn of the assistant, in
    place of prompt and response."""
    chosen_column: str = "chosen"
    """Column with the preferred answer, for `megarl reward`."""
    rejected_column: str = "rejected"
    """Column with the other answer."""
    margin_column: str = "margin"
    """Column with the number by which the preferred answer is to score higher; 0 where there is
    none."""
    source_column: str = "source"
    """Column with the data source's name."""
    max_prompt_length: int = 512
    """Tokens; longer prompts are dropped and counted. In `megarl sft` and `megarl reward` a whole
    example may have max_prompt_length + max_response_length."""
    max_response_length: int = 512
    """Tokens generated at most."""
    rollout_batch_size: int = 64
    """Prompts per step."""
    n_samples_per_prompt: int = 1
    """Samples per prompt (the group of group-relative estimators)."""
    eval_size: int = 200
    """Held-out prompts per evaluation, from the start of eval_path."""
    indexed: IndexedDataConfig = field(default_factory=IndexedDataConfig)
    """Pretraining's corpora, where they are indexed."""


@dataclass
class KLControlConfig:
    """The controller of the KL penalty in the reward."""

    type: str = "fixed"
    """fixed or adaptive."""
    target_kl: float = 0.1
    """Nats per response token that the adaptive controller aims at."""
    horizon: int = 10000
    """Samples over which the adaptive controller corrects."""


@dataclass
class FilterGroupsConfig:
    """DAPO's dynamic sampling: prompts whose samples all get the same are replaced by others."""

    enable: bool = False
    """Sample further prompts until the step has rollout_batch_size whose samples differ."""
    metric: str = "accuracy"
    """accuracy (all right or all wrong, by the verifier) or reward (all the same reward)."""
    max_num_gen_batches: int = 10
    """Rounds of sampling in a step at most; the step then takes what there is, groups without a
    difference included, and counts them."""


@dataclass
class AlgorithmConfig:
    """Advantages, losses and the optimizer's batches."""

    adv_estimator: str = "gae"
    """gae (PPO, with a critic), grpo, grpo_no_std (Dr. GRPO: scale_rewards and
    norm_adv_by_std_in_grpo false), grpo_passk, grpo_process, rloo, opo, gpg,
    reinforce_plus_plus, reinforce_plus_plus_baseline, remax; path/to/file.py:function, or an entry
    point of group megarl.adv_estimators."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 1.0
    """GAE's lambda."""
    whiten_advantages: bool = True
    """Zero mean and unit variance over the tokens of the step (gae, and estimators of your own that
    read values and have no normalisation)."""
    kl_coef: float = 0.0
    """KL penalty per token, subtracted from the reward (starting value when adaptive)."""
    kl_penalty: str = "k1"
    """That KL's estimate: k1, k2, k3 or abs (kl, mse, low_var_kl). Metrics and the adaptive
    controller take k1 in any case, whose mean is the KL."""
    kl_ctrl: KLControlConfig = field(default_factory=KLControlConfig)
    """Its controller."""
    use_kl_loss: bool = False
    """Add the KL to the reference to the loss."""
    kl_loss_coef: float = 0.001
    """Its weight."""
    kl_loss_type: str = "k3"
    """k1, k2, k3 or abs (kl, mse, low_var_kl); with a + behind it (k3+) its value, and the gradient
    of k2, the only one that is the KL's own in expectation."""
    policy_loss: str = "ppo"
    """ppo, gspo, geo_mean, cispo, sapo, clip_cov, kl_cov or reinforce; path/to/file.py:function, or
    an entry point of group megarl.policy_losses."""
    tau_pos: float = 1.0
    """sapo: how fast its gate closes where the advantage is positive."""
    tau_neg: float = 1.05
    """sapo: how fast it closes where the advantage is not."""
    clip_cov_ratio: float = 0.0002
    """clip_cov: share of the tokens of an optimizer step that it takes out."""
    clip_cov_lb: float = 1.0
    """clip_cov: these have a covariance of advantage and log-prob above this ..."""
    clip_cov_ub: float = 5.0
    """... and below this."""
    kl_cov_ratio: float = 0.0002
    """kl_cov: share of the tokens, those of the greatest covariance, that get a KL penalty."""
    ppo_kl_coef: float = 1.0
    """kl_cov: weight of that penalty."""
    clip_ratio: float = 0.2
    """Half-width of the policy clip."""
    clip_ratio_low: float | None = None
    """Lower half-width; None: clip_ratio."""
    clip_ratio_high: float | None = None
    """Upper half-width; None: clip_ratio."""
    clip_ratio_c: float | None = None
    """Dual clip, above 1; None is off."""
    value_clip: float | None = 0.2
    """Half-width of the value clip; None is off."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, 0 or more."""
    loss_agg_mode: str = "token-mean"
    """token-mean, seq-mean-token-sum, seq-mean-token-mean or seq-mean-token-sum-norm."""
    ppo_epochs: int = 1
    """Passes over a step's samples."""
    global_batch_size: int = 64
    """Samples per optimizer step; divides rollout_batch_size x n_samples_per_prompt."""
    micro_batch_size: int = 8
    """Samples per forward pass and data-parallel rank; what is left over makes a smaller one."""
    use_dynamic_batch_size: bool = False
    """Fill micro-batches up to max_tokens_per_gpu instead of micro_batch_size."""
    max_tokens_per_gpu: int = 4096
    """Padded tokens of one micro-batch, where use_dynamic_batch_size is set."""
    sequence_packing: bool = False
    """Lay short samples of a micro-batch behind each other in one row: less padding. Attention
    stays inside each sample. Not yet where layers are TransformerEngine's."""
    critic_warmup: int = 0
    """Steps in which only the critic is trained."""
    filter_groups: FilterGroupsConfig = field(default_factory=FilterGroupsConfig)
    """Dynamic sampling."""
    overlong_filtering: bool = False
    """Responses that were cut off at max_response_length teach the policy nothing (DAPO)."""
    rollout_is: str | None = None
    """Importance weights trainer / engine: token (TIS), sequence, or None: all 1."""
    rollout_is_threshold: float = 2.0
    """Greatest importance weight."""
    rollout_is_threshold_lower: float | None = None
    """Least weight; None: 0, or with rollout_is_mode mask 1 / rollout_is_threshold."""
    rollout_is_mode: str = "truncate"
    """truncate weights to their limits, or mask (IcePop): those outside count 0."""
    rollout_rs: str | None = None
    """Leave out, by the same ratio: each token that is outside, or the response whose sequence
    ratio or geometric mean is; None: nothing."""
    rollout_rs_threshold: float = 2.0
    """Greatest ratio that is kept."""
    rollout_rs_threshold_lower: float | None = None
    """Least ratio that is kept; None: 1 / rollout_rs_threshold."""
    rollout_token_veto_threshold: float | None = None
    """A response with a token of a ratio below this (1e-4, say) is left out; None is off."""


@dataclass
class ExtraRewardConfig:
    """A reward function beside the task's verifier: a format, a length, a style."""

    function: str = ""
    """As reward.function."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function's factory."""
    coef: float = 1.0
    """What its reward is multiplied by before it is added."""


@dataclass
class RewardConfig:
    """What a response is worth: the task's verifier, other functions and a reward model, added up;
    then limits, normalisation and length."""

    function: str | None = None
    """A built-in name, path/to/file.py:function, or an entry point of group megarl.rewards; None:
    exact_match, or nothing beside a reward model."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function's factory."""
    function_coef: float = 1.0
    """What the function's reward is multiplied by; 0: it judges evaluations and nothing else."""
    extra_functions: dict[str, ExtraRewardConfig] = field(default_factory=dict)
    """Further rewards: a name of one's own, for metrics -> function, kwargs and coef, as those of
    the function. They are added, and say nothing about right and wrong."""
    overlap: bool = True
    """Call the functions in a thread, while other responses are still being generated; false: after
    them, in the main thread."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The reward model: a ...ForSequenceClassification with one label and the actor's tokens, whose
    score at a sample's last token is the reward; off where path is empty."""
    mesh: MeshConfig | None = None
    """The reward model's mesh; None: the actor's."""
    model_coef: float = 1.0
    """What the reward model's score is multiplied by."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the reward of a response that was cut off before it ended by itself."""
    clip: list[float] = field(default_factory=list)
    """[low, high]: rewards are kept within; empty: as they are."""
    normalize: bool = False
    """Divide by the spread of all rewards so far, their mean taken off: for reward models."""
    length_penalty: str | None = None
    """group: add 0.5 for the shortest to -0.5 for the longest response to a prompt (Kimi k1.5);
    cosine: in place of the reward, more for short right answers and for long wrong ones; None: no
    such thing."""
    length_penalty_coef: float = 1.0
    """What the length's reward is multiplied by."""
    length_penalty_kwargs: dict[str, float] = field(default_factory=dict)
    """cosine: right_short, right_long, wrong_short, wrong_long, exceeded."""
    overlong_buffer_len: int = 0
    """Tokens before max_response_length over which a penalty for length grows (DAPO); 0: none."""
    overlong_penalty_factor: float = 1.0
    """That penalty at max_response_length."""
    success_reward: float = 1.0
    """The function's reward from which an answer that ended by itself counts as right, in
    evaluation and in dynamic sampling. Without a function there is no accuracy: a reward model's
    scores have no such number."""


@dataclass
class EnvironmentConfig:
    """Episodes of several turns; one of one turn, without an environment, is the rule."""

    function: str | None = None
    """A built-in name, path/to/file.py:Class, or an entry point of group megarl.environments; None:
    there is none, and a response is an answer."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    max_turns: int = 8
    """The model's turns in an episode at most; its tokens, the environment's included, are at most
    data.max_response_length."""
    turn_timeout_s: float = 30.0
    """Longest wait for one answer of an environment; its episode ends then, without more reward."""
    workers: int = 32
    """Threads that call environments, on each rank that generates."""


@dataclass
class EvaluationConfig:
    """How held-out prompts are answered: greedily, and by samples beside that."""

    n_samples: int = 0
    """Sampled answers to each prompt, for pass@k and majority votes; 0: only the greedy one."""
    temperature: float = 1.0
    """Their sampling temperature."""
    top_p: float = 1.0
    """Their nucleus size."""
    top_k: int = -1
    """Their largest number of candidates; -1 is all."""
    pass_at: list[int] = field(default_factory=list)
    """The k of pass@k, 1 to n_samples; empty: 1, the powers of two below n_samples, n_samples."""


@dataclass
class WeightSyncConfig:
    """The reshard from actor to rollout."""

    buffer_megabytes: int = 512
    """Memory of the two send and two receive buffers together, at any size of the model."""
    communication_overlap: bool = True
    """Pack and unpack while another buffer is on the wire; false: one after the other."""
    verify_interval: int = 1
    """Syncs between two checks of every region's digest; 0 is never."""
    strict: bool = False
    """Refuse a model with a tensor that only vLLM's own loaders can place; false: such tensors are
    gathered whole on every rollout rank, one after the other, and listed."""
    alias: bool = False
    """Make rollout parameters that a rank's actor holds byte for byte views of the actor's: no copy
    and no second memory. On CPU vLLM computes such layers without packing, several times slower."""
    canary: bool = True
    """Compare a fixed prompt's log-probs on both engines after each sync."""


@dataclass
class CheckpointConfig:
    """What is kept of a run, so that it can go on."""

    save_interval: int = 0
    """Steps between checkpoints, and one after the last step; 0: only when SIGUSR1 asks for it."""
    keep_last: int = 2
    """How many stay; 0 is all."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this stay for ever; 0: none."""
    best_metric: str | None = None
    """Metric of evaluations, such as eval/accuracy or eval/pass@4/SOURCE: a step with a new best
    one is saved, and stays until there is a better; None: none does."""
    higher_is_better: bool | None = None
    """Whether the highest best_metric is the best; None: the lowest of a loss, the highest of
    anything else."""
    async_save: bool = False
    """Write while training goes on, from a copy of each rank's part in host memory."""
    resume_mode: str = "auto"
    """auto: go on from the newest checkpoint in run.dir, where there is one; previous: the same,
    and from the one before where the newest cannot be read; never: start anew, and set the earlier
    run's records aside."""


@dataclass
class ObserveConfig:
    """What is written where."""

    use_tensorboard: bool = True
    """Write TensorBoard files."""
    logprob_diff_mean_limit: float = 0.2
    """Stop when train/rollout log-probs differ by more on average (nats); 0 is off."""
    logprob_diff_p99_limit: float = 2.0
    """Stop when their 99th percentile differs by more (nats); 0 is off."""
    progress: bool = True
    """Progress bar in a terminal, plain lines elsewhere."""


@dataclass
class RunConfig:
    """The run itself."""

    world_size: int | None = None
    """Processes that `megarl train` starts on this machine, where no launcher started it; None:
    what resources names, or else what the actor's mesh asks for."""
    dir: str = "runs/default"
    """Run folder: logs, metrics, resolved settings, exported model; an evaluation's in eval/."""
    steps: int = 100
    """Training steps in all."""
    seed: int = 0
    """Seed of everything."""
    deterministic: bool = False
    """On GPUs, take only algorithms that give the same bits each time, so that a resumed run ends
    as an undisturbed one; slower. On a CPU runs are so in any case."""
    eval_interval: int = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    timeout_s: float = 600.0
    """Longest wait in a collective, seconds."""
    stall_timeout_s: float = 45.0
    """Seconds a rank may wait at a verb before the laggards are named."""
    export: bool = True
    """Write the trained actor as a Hugging Face folder at the end."""


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    """The run itself."""
    resources: dict[str, list[int]] = field(default_factory=dict)
    """Ranks per role (actor_gpus, critic_gpus, reference_gpus, reward_gpus, rollout_gpus);
    empty: one pool."""
    actor: TrainedRoleConfig = field(default_factory=TrainedRoleConfig)
    """The policy."""
    critic: TrainedRoleConfig = field(default_factory=TrainedRoleConfig)
    """The value model; built only for estimators that need it."""
    reference: FrozenRoleConfig = field(default_factory=FrozenRoleConfig)
    """The frozen policy; built only where a KL term needs it."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Generation."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Advantages and losses."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The verifier, the reward model."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """Who answers the model, where an episode has several turns."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Answers to held-out prompts."""
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    """Actor to rollout."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Going on after an interruption."""
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    """Logs, limits, progress."""
