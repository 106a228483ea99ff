"""Normalization over the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.parameters import broadcast, ones, zeros


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale.

    Source: Zhang and Sennrich 2019, Root mean square layer normalization, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, dim: int, epsilon: float, *, axis: str = "norm"):
        self.epsilon = epsilon
        self.scale = ones((dim,), axis)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized x[..., dim] in its own dtype."""
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse * broadcast(self.scale[...], x)).astype(x.dtype)


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
        return RMSNorm(config.embed_dim, config.norm_epsilon)
    return LayerNorm(config.embed_dim, config.norm_epsilon, bias=config.bias)
