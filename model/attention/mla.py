"""Multi-head latent attention (MLA): keys and values come out of a latent all heads share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.attention.backends import attend
from model.attention.mask import Mask
from model.attention.positions import frequencies, rotate
from model.dropout import dropout, fold
from model.norm import RMSNorm
from model.parameters import normal, project
from sharding.rules import constrain


class LatentAttention(nnx.Module):
    """Heads whose first part comes out of latents and whose last part is rotated, one key for all.

    Letters: Q and C the widths of the latents of queries and of keys and values, R that of the
    rotated part of a head, W that of a value head. Source: DeepSeek-AI 2024, DeepSeek-V2,
    arXiv:2405.04434, section 2.1.2 and 2.1.3.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        assert config.kv_latent_dim is not None
        assert config.rope_head_dim is not None
        assert config.value_head_dim is not None
        D, N, H, std = config.embed_dim, config.num_heads, config.head_dim, config.init_std
        C, R, W = config.kv_latent_dim, config.rope_head_dim, config.value_head_dim
        heads = ("embed", "heads", "head_dim")
        self.config = config
        query_dim = D
        if config.query_latent_dim is not None:
            query_dim = config.query_latent_dim
            self.query_down = normal(rngs, (D, query_dim), "embed", "latent", std=std)
            self.query_latent_norm = RMSNorm((query_dim,), ("norm",), config)
        self.query = normal(rngs, (query_dim, N, H + R), *heads, std=std)
        self.down = normal(rngs, (D, C), "embed", "latent", std=std)
        self.latent_norm = RMSNorm((C,), ("norm",), config)
        self.key_rotary = normal(rngs, (D, R), "embed", "head_dim", std=std)
        self.key = normal(rngs, (C, N, H), *heads, std=std)
        self.value = normal(rngs, (C, N, W), *heads, std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.out = normal(rngs, (N, W, D), "heads", "head_dim", "embed", std=std_out)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        rng_BT: jax.Array | None = None,
        *,
        bias_BNTS: jax.Array | None = None,
        is_local: bool = False,
    ) -> jax.Array:
        assert bias_BNTS is None
        config, H = self.config, self.config.head_dim
        heads, whole, x_BTQ = ("act_heads", "act_head_dim"), (None,), x_BTD
        if config.query_latent_dim is not None:
            x_BTQ = self.query_latent_norm(project(x_BTD, self.query_down[...], axes=whole))
        latent_BTC = self.latent_norm(project(x_BTD, self.down[...], axes=whole))
        k_rotary_BT1R = project(x_BTD, self.key_rotary[...], axes=whole)[:, :, None]
        q_BTNH = project(x_BTQ, self.query[...], axes=heads)
        k_BTNH = project(latent_BTC, self.key[...], axes=heads)
        v_BTNW = project(latent_BTC, self.value[...], axes=heads)

        frequency_J = frequencies(config, is_local=is_local)
        factor = config.rope_scaling.attention_factor
        q_rotary_BTNR = rotate(q_BTNH[..., H:], positions_BT, frequency_J, factor)
        k_rotary_BT1R = rotate(k_rotary_BT1R, positions_BT, frequency_J, factor)
        k_rotary_BTNR = jnp.broadcast_to(k_rotary_BT1R, q_rotary_BTNR.shape)
        q_BTNH = jnp.concatenate((q_BTNH[..., :H], q_rotary_BTNR), axis=-1)
        k_BTNH = jnp.concatenate((k_BTNH, k_rotary_BTNR), axis=-1)
        q_BTNH = checkpoint_name(q_BTNH, "query")
        k_BTNH, v_BTNW = checkpoint_name(k_BTNH, "key"), checkpoint_name(v_BTNW, "value")
        y_BTNW = attend(config, q_BTNH, k_BTNH, v_BTNW, mask, dropout_rng_BT=fold(rng_BT, 0))
        y_BTNW = constrain(y_BTNW, "act_batch", "act_len", *heads)
        y_BTD = project(y_BTNW, self.out[...], axes=("act_embed",), num_contracted=2)
        return dropout(checkpoint_name(y_BTD, "attention_out"), config.dropout, fold(rng_BT, 1))
