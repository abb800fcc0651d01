from __future__ import annotations

from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from eridiff.families.relative_bias import lay_out_bias


def tiny_t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, num_heads=3, num_layers=2, d_ff=8)
    return T5EncoderModel(config).eval().requires_grad_(False)


def test_the_bias_keeps_its_values_and_lies_as_fused_attention_reads_it() -> None:
    t5 = tiny_t5()
    attention = t5.encoder.block[0].layer[0].SelfAttention
    before = attention.compute_bias(5, 7)
    assert not before.is_contiguous()
    lay_out_bias(t5)
    after = attention.compute_bias(5, 7)
    assert after.shape == (1, 3, 5, 7)
    assert after.is_contiguous()
    assert torch.equal(after, before)


def test_states_stay_the_same() -> None:
    t5, ids = tiny_t5(), torch.arange(14).view(2, 7)
    before = t5(ids).last_hidden_state
    lay_out_bias(t5)
    torch.testing.assert_close(t5(ids).last_hidden_state, before)
