"""`megarl eval`: a model's answers to the held-out prompts, without training."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from megarl.config.schema import Config
from megarl.mesh.control import Control
from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Universe
from megarl.observe.progress import Progress
from megarl.observe.report import show
from megarl.roles.actor import Actor
from megarl.train.build import (
    Builder,
    make_evaluation,
    make_sampling,
    read_prompts,
)
from megarl.train.build_rollout import make_rollout, make_weight_sync
from megarl.train.eval_records import evaluation_table, write_answers
from megarl.train.evaluate import evaluate


def evaluate_model(config: Config, plan: RunPlan, universe: Universe, control: Control) -> None:
    """Load the actor, sync it into the rollout engines, evaluate, write `eval.json`."""
    control.enter("build")
    builder = Builder(config, plan, universe)
    tokenizer = AutoTokenizer.from_pretrained(plan.actor.path)
    actor = builder.role("actor", Actor, plan.actor, config.actor.model, None, 1)
    scorer = builder.scorer(control, tokenizer)
    rollout = make_rollout(config, plan, universe, tokenizer, plan.actor.path)
    prompts = read_prompts(config, tokenizer, config.data.eval_path)[: config.data.eval_size]
    weight_sync = make_weight_sync(config, plan, universe, control, actor, rollout, prompts)
    control.enter("sync_weights")
    weight_sync.run()
    control.enter("evaluate")
    # One replica shows its share, which is about as far as the others are with theirs.
    share = len(prompts[:: rollout.num_replicas]) * (1 + config.evaluation.n_samples)
    shows = config.observe.progress and universe.rank == rollout.lead_of(0)
    spec = make_evaluation(config, make_sampling(config, plan, tokenizer))
    with Progress(f"evaluate (1 of {rollout.num_replicas} replicas)", share, shows) as bar:
        result = evaluate(
            rollout, control, scorer, prompts, spec, lambda new: bar.advance(len(new))
        )
    if universe.rank == 0:
        folder = Path(config.run.dir)
        write_answers(folder, prompts, result)
        (folder / "eval.json").write_text(json.dumps(result.metrics, indent=2) + "\n")
        show(evaluation_table(result.metrics, prompts, f"Evaluation {folder}"))
    universe.barrier()
    if rollout.here:
        rollout.engine.close()
