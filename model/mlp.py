"""The feed-forward half of a block."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.dropout import dropout
from model.parameters import normal, project, zeros


def activate(config: ModelConfig, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Returns the hidden layer; a gate is given for SwiGLU alone.

    Source: Shazeer 2020, GLU variants improve Transformer, arXiv:2002.05202, eq. 6 (swiglu);
    Hendrycks and Gimpel 2016, arXiv:1606.08415 (gelu exactly, gelu_tanh by its approximation);
    So et al. 2021, Primer, arXiv:2109.08668, section 4 (relu2).
    """
    up = checkpoint_name(up, "up")
    match config.mlp:
        case "swiglu":
            assert gate is not None
            return jax.nn.silu(checkpoint_name(gate, "gate")) * up
        case "gelu":
            return jax.nn.gelu(up, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(up, approximate=True)
        case "relu2":
            return jax.nn.relu(up) ** 2


class MLP(nnx.Module):
    """down(act(up(x))), or down(silu(gate(x)) * up(x)) for SwiGLU."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F, std = config.embed_dim, config.mlp_dim, config.init_std
        self.config = config
        if config.mlp == "swiglu":
            self.gate = normal(rngs, (D, F), "embed", "mlp", std=std)
        self.up = normal(rngs, (D, F), "embed", "mlp", std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.down = normal(rngs, (F, D), "mlp", "embed", std=std_out)
        if config.bias:
            if config.mlp == "swiglu":
                self.gate_bias = zeros((F,), "mlp")
            self.up_bias = zeros((F,), "mlp")
            self.down_bias = zeros((D,), "norm")

    def __call__(self, x_BTD: jax.Array, keys_BT: jax.Array | None = None) -> jax.Array:
        """Returns [B, T, D]; keys_BT is one random key a token for dropout, None in evaluation."""
        bias = self.config.bias
        up_bias = self.up_bias[...] if bias else None
        up_BTF = project(x_BTD, self.up[...], up_bias, axes=("act_mlp",))
        gate_BTF = None
        if self.config.mlp == "swiglu":
            gate_bias = self.gate_bias[...] if bias else None
            gate_BTF = project(x_BTD, self.gate[...], gate_bias, axes=("act_mlp",))
        y_BTD = project(
            activate(self.config, up_BTF, gate_BTF),
            self.down[...],
            self.down_bias[...] if bias else None,
            axes=("act_embed",),
        )
        return dropout(checkpoint_name(y_BTD, "mlp_out"), self.config.dropout, keys_BT)
