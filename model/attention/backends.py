"""The choice of an attention backend; what each can do is configs/attention_backends.py."""

import importlib
from types import ModuleType

import jax

from configs.model import ModelConfig
from model.attention.mask import Mask, Scoring
from model.attention.ring import ring_attend
from sharding.rules import constrain, num_shards


def attend(
    config: ModelConfig,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    bias_BNTS: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    dropout_rng_BT: jax.Array | None = None,
) -> jax.Array:
    """Returns attention by the backend that the settings choose, also of sharded sequences.

    A backend names its result for jax.checkpoint, and nobody does after it: under a second name it
    would be kept twice.
    """
    scale = config.attention_scale or q_BTNH.shape[-1] ** -0.5
    scoring, name = Scoring(scale, config.attention_softcap), config.attention_backend
    if num_shards("act_len") > 1 and config.context_attention == "ring":
        backend = load("blockwise" if name == "auto" else name)
        return ring_attend(backend, q_BTNH, k_BSKH, v_BSKH, mask, scoring=scoring, sinks_N=sinks_N)
    kv_axes = ("act_batch", None, "act_kv_heads", "act_head_dim")  # gathered along the sequence
    return load("plain" if name == "auto" else name).attend(
        q_BTNH,
        constrain(k_BSKH, *kv_axes),
        constrain(v_BSKH, *kv_axes),
        mask,
        scoring=scoring,
        bias_BNTS=bias_BNTS,
        sinks_N=sinks_N,
        dropout_rng_BT=dropout_rng_BT,
        dropout_rate=config.attention_dropout,
    )


def load(name: str) -> ModuleType:
    """Returns the module of a backend; others are not imported, since a kernel may need a GPU."""
    return importlib.import_module(f"model.attention.{name}")
