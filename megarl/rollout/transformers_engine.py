"""A slow rollout engine on transformers: an oracle for tests, and for machines without vLLM.

Every step runs the whole sequences again, without a key/value cache: nothing of earlier weights can
survive a sync. One rank per replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megarl.errors import ConfigError
from megarl.layout import ModelShape, VllmSlice, vllm_parameters, vllm_placement
from megarl.rollout.local import Decode, LocalEngine, Sample
from megarl.runtime.device import device
from megarl.types import SamplingSpec


class TransformersEngine(LocalEngine):
    """A Hugging Face model whose weights are views of tensors in vLLM's layout."""

    def __init__(
        self,
        model_path: str,
        shape: ModelShape,
        dtype: torch.dtype,
        decode: Decode,
        max_model_len: int,
        max_num_seqs: int = 256,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model_path)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device()).eval()
        self._model = model.requires_grad_(False)
        self._vocab_size = shape.vocab_size
        self._pieces = vllm_placement(shape, VllmSlice(), padded_vocab=False)
        super().__init__(_zeros(shape, dtype), decode, max_model_len, max_num_seqs)
        self._bind(self._parameters)

    def alias(self, views: Mapping[str, Tensor]) -> frozenset[str]:
        """See RolloutEngine."""
        self._bind(views)
        return super().alias(views)

    @torch.no_grad()
    def next_tokens(self, samples: Sequence[Sample]) -> list[tuple[int, float]]:
        """See LocalEngine."""
        rows = [sample.tokens for sample in samples]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        hidden = self._model.model(tokens.to(device()), use_cache=False).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        last = hidden[torch.arange(len(rows), device=hidden.device), ends]
        logits = self._model.lm_head(last).float().cpu()
        return [
            _sample_token(row, sample.sampling, sample.generator)
            for row, sample in zip(logits, samples, strict=True)
        ]

    @torch.no_grad()
    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[list[float]]:
        """See RolloutEngine."""
        tokens = torch.tensor([list(token_ids)], device=device())
        logprobs = self._model(tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        return [logprobs.gather(1, tokens[0, 1:, None])[:, 0].tolist()]

    def _bind(self, buffers: Mapping[str, Tensor]) -> None:
        """Make the model's parameters views of tensors in vLLM's layout.

        Raises ConfigError where the layout's parameters are not those that the model has.
        """
        own = dict(self._model.named_parameters())
        odd = {piece.tensor for piece in self._pieces} ^ set(own)
        if odd:
            raise ConfigError(f"rollout: transformers' parameters differ at {sorted(odd)[0]}")
        for piece in self._pieces:
            if piece.buffer in buffers:
                flat = buffers[piece.buffer].view(-1)[piece.offset :]
                own[piece.tensor].data = flat.as_strided(piece.box.shape, piece.strides)


def _zeros(shape: ModelShape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors in vLLM's layout on one rank."""
    return {
        name: torch.zeros(size, dtype=dtype, device=device())
        for name, size in vllm_parameters(shape, VllmSlice()).items()
    }


def _sample_token(
    logits: Tensor, sampling: SamplingSpec, generator: torch.Generator
) -> tuple[int, float]:
    """logits: fp32 [V]. The token, and its log-prob after temperature, top_k and top_p."""
    if sampling.temperature == 0:
        token = int(logits.argmax())
        return token, float(logits.log_softmax(-1)[token])
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.softmax(-1).sort(descending=True)
        surplus = index[ordered.cumsum(0) - ordered >= sampling.top_p]
        logits = logits.index_fill(0, surplus, -torch.inf)
    logprobs = logits.log_softmax(-1)
    token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
    return token, float(logprobs[token])
