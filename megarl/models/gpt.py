"""The models of the roles: a GPT whose last stage scores chosen tokens, by log-prob or by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import Tensor

from megarl.layout.rules import ModelShape
from megarl.mesh.role_mesh import RoleMesh
from megarl.models.layer_spec import block_spec
from megarl.models.logprob import VocabShard, token_logprobs
from megarl.models.rope import inverse_frequencies
from megarl.models.transformer_config import transformer_config


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Which positions of a micro-batch [b, s] are scored, and for which token."""

    position: Tensor
    """int64 [n]: (column * b + row) of the position whose hidden state predicts the token."""
    target: Tensor
    """int64 [n]: the token."""


class PolicyModel(GPTModel):
    """A causal language model; its last stage returns the scored tokens' log-probs."""

    def __init__(self, *, shape: ModelShape, sequence_parallel: bool, **kwargs: Any) -> None:
        super().__init__(share_embeddings_and_output_weights=shape.tied, **kwargs)
        self._sequence_parallel = sequence_parallel
        self._true_vocab_size = shape.vocab_size

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        scored: ScoredTokens | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> Any:
        """Hidden states [s, b, H] on earlier stages; (log-probs, entropy) fp32 [n] on the last."""
        hidden = super().forward(input_ids, position_ids, attention_mask)
        if not self.post_process:
            return hidden
        assert scored is not None
        chosen = _choose(hidden, scored, self._sequence_parallel, self.pg_collection.tp, True)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        start = self.pg_collection.tp.rank() * weight.shape[0]
        valid = min(max(self._true_vocab_size - start, 0), weight.shape[0])
        shard = VocabShard(start, valid, self.pg_collection.tp)
        return token_logprobs(chosen, weight, scored.target, shard, temperature, with_entropy)


class ValueModel(GPTModel):
    """A GPT with a scalar head: its last stage returns one value per scored token."""

    def __init__(self, *, shape: ModelShape, sequence_parallel: bool, **kwargs: Any) -> None:
        super().__init__(share_embeddings_and_output_weights=False, **kwargs)
        self._sequence_parallel = sequence_parallel
        if self.post_process:
            del self.output_layer
            head = torch.nn.Linear(shape.hidden_size, 1, bias=False, dtype=self.config.params_dtype)
            self.value_head = head.to(self.decoder.final_layernorm.weight.device)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Any, ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """Megatron's, without what it does about an output layer that is not there."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return super(LanguageModule, self).sharded_state_dict(prefix, sharded_offsets, metadata)

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        scored: ScoredTokens | None = None,
        **_: Any,
    ) -> Any:
        """Hidden states [s, b, H] on earlier stages; values fp32 [n] on the last."""
        hidden = super().forward(input_ids, position_ids, attention_mask)
        if not self.post_process:
            return hidden
        assert scored is not None
        chosen = _choose(hidden, scored, self._sequence_parallel, self.pg_collection.tp, False)
        return self.value_head(chosen)[:, 0].float()


def _choose(
    hidden: Tensor, scored: ScoredTokens, sequence_parallel: bool, group: Any, vocab_parallel: bool
) -> Tensor:
    """Hidden states [n, H] of the scored positions, whole on every tensor rank.

    `vocab_parallel` heads send back partial gradients, which are summed over tensor ranks; a
    replicated head sends back the whole gradient on each.
    """
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=vocab_parallel, group=group
        )
    elif vocab_parallel:
        hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
    return hidden.reshape(-1, hidden.shape[-1])[scored.position]


def build_chunks(
    hf: Mapping[str, Any],
    shape: ModelShape,
    mesh: RoleMesh,
    dtype: torch.dtype,
    recompute_granularity: str | None = None,
) -> list[torch.nn.Module]:
    """This rank's model chunks (one per virtual stage), weights not yet set.

    Policy models where `shape` has a vocabulary head, value models where it has a scalar one.
    """
    layout = mesh.layout
    config = transformer_config(hf, shape, layout, dtype, recompute_granularity)
    model_class = PolicyModel if shape.scalar_head is None else ValueModel
    chunks: list[torch.nn.Module] = []
    for chunk in range(layout.vpp):
        stage = chunk if layout.vpp > 1 else None
        model = model_class(
            shape=shape,
            sequence_parallel=config.sequence_parallel,
            config=config,
            transformer_layer_spec=block_spec(
                config, get_num_layers_to_build(config, vp_stage=stage, pp_rank=mesh.at.pp)
            ),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=int(hf.get("max_position_embeddings", 4096)),
            pre_process=mesh.is_first_stage and chunk == 0,
            post_process=mesh.is_last_stage and chunk == layout.vpp - 1,
            parallel_output=True,
            position_embedding_type="rope",
            pg_collection=mesh.groups,
            vp_stage=stage,
        )
        device = next(model.parameters()).device
        model.rotary_pos_emb.inv_freq = inverse_frequencies(hf, shape.head_dim).to(device)
        chunks.append(model)
    return chunks
