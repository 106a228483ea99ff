"""The feed-forward half of a block."""

from functools import partial

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.dropout import dropout
from model.parameters import normal, project, value_of, zeros

_exact_gelu = partial(jax.nn.gelu, approximate=False)
_FUNCTIONS = {
    "swiglu": jax.nn.silu,
    "geglu": _exact_gelu,
    "geglu_tanh": jax.nn.gelu,
    "gelu": _exact_gelu,
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "silu": jax.nn.silu,
}


def activate(config: ModelConfig, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Returns the hidden layer; a gate is given for the kinds with glu alone.

    Source: Shazeer 2020, GLU variants improve Transformer, arXiv:2002.05202, eq. 5 and 6 (glu);
    Hendrycks and Gimpel 2016, arXiv:1606.08415 (gelu exactly, gelu_tanh by its approximation);
    So et al. 2021, Primer, arXiv:2109.08668, section 4 (relu2).
    """
    up = checkpoint_name(up, "up")
    function = _FUNCTIONS[config.mlp]
    if not config.is_gated:
        return function(up)
    assert gate is not None
    return function(checkpoint_name(gate, "gate")) * up


class MLP(nnx.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) for the kinds with glu."""

    def __init__(self, config: ModelConfig, *, dim: int | None = None, rngs: nnx.Rngs):
        """Makes an MLP of config.mlp_dim, or of another hidden width."""
        D, F, std = config.embed_dim, dim or config.mlp_dim, config.init_std
        self.config = config
        self.gate = normal(rngs, (D, F), "embed", "mlp", std=std) if config.is_gated else None
        self.up = normal(rngs, (D, F), "embed", "mlp", std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.down = normal(rngs, (F, D), "mlp", "embed", std=std_out)
        self.gate_bias = zeros((F,), "mlp") if config.bias and config.is_gated else None
        self.up_bias = zeros((F,), "mlp") if config.bias else None
        self.down_bias = zeros((D,), "norm") if config.bias else None

    def __call__(self, x_BTD: jax.Array, rng_BT: jax.Array | None = None) -> jax.Array:
        """Returns [B, T, D]."""
        hidden = ("act_mlp",)
        up_BTF = project(x_BTD, self.up[...], value_of(self.up_bias), axes=hidden)
        gate_BTF = None
        if self.gate is not None:
            gate_BTF = project(x_BTD, self.gate[...], value_of(self.gate_bias), axes=hidden)
        y_BTD = project(
            activate(self.config, up_BTF, gate_BTF),
            self.down[...],
            value_of(self.down_bias),
            axes=("act_embed",),
        )
        return dropout(checkpoint_name(y_BTD, "mlp_out"), self.config.dropout, rng_BT)
