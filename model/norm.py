"""Normalization, computed in float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.parameters import broadcast, ones, zeros


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, over the last axis or several.

    Source: Zhang and Sennrich 2019, Root mean square layer normalization, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, dims: Sequence[int], axes: Sequence[str], config: ModelConfig):
        self.epsilon = config.norm_epsilon
        self.is_zero_centered = config.norm_zero_centered
        self.scale = (zeros if self.is_zero_centered else ones)(dims, *axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized x[..., dims] in its own dtype."""
        x32, scale = x.astype(jnp.float32), self.scale[...]
        axes = tuple(range(-scale.ndim, 0))
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + self.epsilon)
        factor = broadcast(1 + scale if self.is_zero_centered else scale, x)
        return (x32 * inverse * factor).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale, plus a bias where there is one.

    Source: Ba et al. 2016, Layer normalization, arXiv:1607.06450, eq. 3.
    """

    def __init__(self, dim: int, epsilon: float, *, bias: bool):
        self.epsilon = epsilon
        self.scale = ones((dim,), "norm")
        self.bias = zeros((dim,), "norm") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized x[..., dim] in its own dtype."""
        x32 = x.astype(jnp.float32)
        centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
        y = centered * jax.lax.rsqrt(variance + self.epsilon) * broadcast(self.scale[...], x)
        if self.bias is not None:
            y = y + broadcast(self.bias[...], x)
        return y.astype(x.dtype)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """Returns the norm of the residual stream that the settings ask for."""
    if config.norm == "rms":
        return RMSNorm((config.embed_dim,), ("norm",), config)
    return LayerNorm(config.embed_dim, config.norm_epsilon, bias=config.bias)
