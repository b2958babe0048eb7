"""Pretraining's indexed data sets: there, whole, long enough, and of the model's tokenizer."""

from __future__ import annotations

from typing import Any

from megarl.config.schema import Config
from megarl.data.blend import check_corpora, parse_blend, wants_evaluation
from megarl.errors import ConfigError, DataError
from megarl.mesh.run_plan import RunPlan

SCANNED_BYTES = 64 << 20
"""Of each .bin, in search of token ids that the model has not."""


def check_sample_length(config: Config, plan: RunPlan) -> None:
    """ConfigError where a sample is longer than the model's positions."""
    length = config.data.indexed.seq_length
    allowed = plan.actor.hf.get("max_position_embeddings")
    if isinstance(allowed, int) and length > allowed:
        raise ConfigError(
            f"data.indexed.seq_length {length} tokens; the model in {plan.actor.path} takes "
            f"max_position_embeddings {allowed}: lower seq_length"
        )
    window = plan.actor.hf.get("sliding_window")
    if plan.actor.hf.get("use_sliding_window", True) and window and length > window:
        raise ConfigError(
            f"data.indexed.seq_length {length} tokens; the model in {plan.actor.path} has a "
            f"sliding_window of {window}, which Megatron's layers here do not have: lower "
            "seq_length"
        )


def check_indexed(config: Config, plan: RunPlan, tokenizer: Any) -> None:
    """ConfigError or DataError for data sets that cannot be read as the settings ask."""
    data = config.data
    if data.train_path:
        raise ConfigError(
            f"data.train_path {data.train_path}: pretraining reads data.indexed.blend alone "
            "(tools/preprocess_data.py makes it of texts); take train_path away"
        )
    if data.indexed.eod_mask_loss and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"data.indexed.eod_mask_loss is set and the tokenizer in {plan.actor.path} has no "
            "eos_token: name one, or leave eod_mask_loss out"
        )
    blend = parse_blend(data.indexed.blend)
    want_eval = wants_evaluation(data.indexed.split, config.run.eval_interval)
    vocabulary = plan.actor.shape.vocab_size
    for index in check_corpora(blend, data.indexed.split, data.indexed.seq_length, want_eval):
        largest = index.largest_token(SCANNED_BYTES)
        if largest >= vocabulary:
            raise DataError(
                f"data.indexed.blend: {index.prefix} holds token {largest}, and the model in "
                f"{plan.actor.path} has vocab_size {vocabulary}: its texts went through another "
                "tokenizer; make it again with this model's"
            )
