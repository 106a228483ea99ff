"""Logits and hidden states are those of `transformers`, from weights that it has written."""

import numpy as np
import pytest
from small_goldens import by_golden, largest_difference

from model.hf.folder import open_hf_model


@pytest.mark.parametrize("pack", [False, True], ids=["rows", "packed"])
@by_golden
def test_hidden_states_and_logits_are_those_of_the_reference(folder, pack):
    assert largest_difference(folder, pack=pack) <= 2e-5


@by_golden
def test_the_texts_of_the_reference_reach_where_models_differ(folder):
    with np.load(folder / "golden.npz") as arrays:
        num_tokens, is_padded = arrays["input_ids"].shape[1], (arrays["attention_mask"] == 0).any()
    config = open_hf_model(folder).config
    assert is_padded
    if folder.name in ("llama3", "llama_yarn", "deepseek_v3"):
        assert 0 < (config.rope_scaling.original_len or 0) < num_tokens
    if folder.name in ("mistral", "gemma2", "gemma3", "modernbert"):
        assert 0 < (config.attention_window or 0) < num_tokens
