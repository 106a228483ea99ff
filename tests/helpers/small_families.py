"""A small model of every kind, with what it is asked and a batch of that."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from small_model import SEQUENCE_LEN, small_model, small_run

from configs.model import ModelConfig
from configs.position import RopeScaling
from configs.run import RunConfig
from data.batch import Batch
from data.objectives.batch_maker import BatchMaker, RowTokens, stream_len
from data.tokenizers.special_tokens import special_token_ids
from data.tokenizers.tokenizer import CharacterTokenizer

LETTERS = "".join(map(chr, range(ord("0"), ord("0") + 40)))
GROUPS = ("masked", "span", "infill")
TOKENIZER = CharacterTokenizer(LETTERS, special_token_ids(GROUPS, len(LETTERS) + 1))

GEMMA: Mapping[str, Any] = {
    "norm_placement": "sandwich",
    "norm_zero_centered": True,
    "embed_scaled": True,
    "mlp": "geglu_tanh",
    "qk_norm": True,
    "attention_window": 5,
    "attention_pattern": ("local", "local", "global"),
    "attention_scale": 0.3,
    "attention_softcap": 3.0,
    "logit_softcap": 5.0,
    "rope_theta_local": 10.0,
    "rope_scaling": RopeScaling(kind="linear", factor=2.0),
}
SINKS: Mapping[str, Any] = {
    "attention_sinks": True,
    "attention_window": 5,
    "attention_pattern": ("local", "global"),
    "qkv_bias": True,
}
OLMO: Mapping[str, Any] = {"norm_placement": "reordered", "qk_norm": True, "qk_norm_over": "heads"}
LATENT: Mapping[str, Any] = {
    "attention": "mla",
    "num_kv_heads": 4,
    "query_latent_dim": 16,
    "kv_latent_dim": 8,
    "rope_head_dim": 4,
    "value_head_dim": 6,
    "num_experts": 8,
    "num_active_experts": 3,
    "expert_dim": 16,
    "num_shared_experts": 2,
    "num_dense_layers": 1,
    "router": "sigmoid",
    "router_bias": True,
    "router_scale": 2.5,
    "router_z_weight": 0.01,
    "num_expert_groups": 4,
    "num_active_groups": 2,
}
BERT: Mapping[str, Any] = {
    "architecture": "encoder",
    "num_kv_heads": 4,
    "norm": "layer",
    "norm_placement": "post",
    "position": "learned",
    "num_positions": SEQUENCE_LEN,
    "num_token_types": 2,
    "embed_norm": True,
    "mlp": "gelu",
    "bias": True,
    "head": "mlm_nsp",
}
MODERNBERT: Mapping[str, Any] = {
    "architecture": "encoder",
    "norm": "layer",
    "first_norm": False,
    "embed_norm": True,
    "mlp": "geglu",
    "attention_window": 4,
    "attention_pattern": ("global", "local", "local"),
    "rope_theta_local": 10.0,
    "head": "mlm",
}
T5: Mapping[str, Any] = {
    "architecture": "encoder_decoder",
    "num_encoder_layers": 2,
    "num_kv_heads": 4,
    "position": "relative",
    "attention_scale": 1.0,
    "mlp": "geglu_tanh",
    "tied_embeddings": False,
}
FIRST_TRANSFORMER: Mapping[str, Any] = {
    "architecture": "encoder_decoder",
    "num_encoder_layers": 2,
    "num_kv_heads": 4,
    "norm": "layer",
    "norm_placement": "post",
    "position": "sinusoidal",
    "embed_scaled": True,
    "mlp": "relu",
    "bias": True,
}
TWO_TEXTS: Mapping[str, Any] = {"objective": "span", "target_len": 16, "span_density": 0.3}


class Kind(NamedTuple):
    """A kind of model and what it is asked."""

    model: ModelConfig
    data: Mapping[str, Any]

    def run(self, **settings: Any) -> RunConfig:
        """Returns the settings of a small run of it; see small_run."""
        return small_run(self.model, data=self.data, **settings)

    def changed(self, **changes: Any) -> "Kind":
        """Returns the kind with other settings of the model."""
        return self._replace(model=dataclasses.replace(self.model, **changes))


def kind(model: Mapping[str, Any], **data: Any) -> Kind:
    """Returns a kind of four layers."""
    settings = {"num_layers": 4, "vocab_size": TOKENIZER.vocab_size, **model}
    return Kind(small_model(**settings), {"special_tokens": GROUPS, **data})


KINDS = {
    "llama": kind({}),
    "prefix": kind({}, objective="prefix"),
    "infill": kind({}, objective="infill"),
    "mixed": kind({}, objective="mixed", objective_mixture=("causal=1", "span=1", "ul2=2")),
    "future": kind({"mtp_depth": 2}),
    "gemma": kind(GEMMA),
    "sinks": kind(SINKS),
    "olmo": kind(OLMO),
    "llama3": kind({"rope_scaling": RopeScaling(kind="llama3", factor=4.0, original_len=8)}),
    "latent": kind(LATENT),
    "bert": kind(BERT, objective="masked_pairs"),
    "modernbert": kind(MODERNBERT, objective="masked"),
    "t5": kind(T5, **TWO_TEXTS),
    "first_transformer": kind(FIRST_TRANSFORMER, objective="prefix", target_len=SEQUENCE_LEN),
    "lstm": kind({"architecture": "lstm"}),
    "gru": kind({"architecture": "gru"}),
}


def spans_of(rng: np.random.Generator, length: int, *, num_ids: int = len(LETTERS)) -> np.ndarray:
    """Returns the tokens of a few documents, as a row of so many is read: with the one after it."""
    ids = rng.integers(0, num_ids, length + 1).astype(np.int32)
    ids[rng.random(length + 1) < 0.15] = TOKENIZER.separator
    return ids


def rows_of(
    rng: np.random.Generator, config: RunConfig, num_rows: int, *, num_ids: int = len(LETTERS)
) -> Sequence[RowTokens]:
    """Returns rows as they are read, some shorter than others."""
    most = stream_len(config.data)
    spans = [
        spans_of(rng, int(rng.integers(most * 2 // 3, most + 1)), num_ids=num_ids)
        for _ in range(2 * num_rows)
    ]
    return [RowTokens([spans[i]], (0, i), [spans[num_rows + i]]) for i in range(num_rows)]


def batch_of_kind(
    rng: np.random.Generator, config: RunConfig, num_rows: int, *, num_ids: int = len(LETTERS)
) -> Batch[np.ndarray]:
    """Returns a batch of what the settings ask."""
    maker = BatchMaker(config.data, TOKENIZER)
    return maker.batch(rows_of(rng, config, num_rows, num_ids=num_ids))
