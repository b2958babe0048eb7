"""Rotary frequencies against transformers' own functions, in both spellings of the config."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megarl.errors import ConfigError
from megarl.models.rope import inverse_frequencies

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default-large-theta": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3},
}


@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_transformers(name: str, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=4096,
        rope_parameters=ROPES[name],
    )
    expected = LlamaRotaryEmbedding(config).inv_freq
    found = inverse_frequencies(config.to_dict(), head_dim)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    older = {key: value for key, value in ROPES[name].items() if key != "rope_theta"}
    older["type"] = older.pop("rope_type")
    spelled = {"rope_theta": ROPES[name]["rope_theta"], "rope_scaling": older}
    assert torch.equal(inverse_frequencies(spelled, head_dim), found)


def test_no_rope_settings_means_theta_10000() -> None:
    plain = {"rope_parameters": ROPES["default"]}
    assert torch.equal(inverse_frequencies({}, 32), inverse_frequencies(plain, 32))


def test_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="rope_type is 'yarn'; known: default, linear, llama3"):
        inverse_frequencies({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 32)
    with pytest.raises(ConfigError, match="rope_type llama3 needs low_freq_factor"):
        half = {key: value for key, value in ROPES["llama3"].items() if key != "low_freq_factor"}
        inverse_frequencies({"rope_parameters": half}, 32)
