"""The feed-forward half of a block as a mixture of experts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.dispatch import Chosen, Experts, compute_experts
from model.dropout import dropout
from model.parameters import normal, project
from sharding.rules import constrain


class RouterRecord(NamedTuple):
    """What a router did, as sums over the tokens of each row: rows and layers add up, [B]."""

    balance_B: jax.Array
    """The load-balance loss times the tokens of the row: over those it is 1 where the load is even,
    E where one expert gets everything."""
    dropped_B: jax.Array
    """Choices that no expert had a place for, of A for each token."""


class MoE(nnx.Module):
    """The weighted sum of what the A likeliest of E experts, each an MLP, make of a token.

    Source: Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, section 2.1.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        assert config.num_experts is not None
        assert not config.bias
        E, D, F, std = config.num_experts, config.embed_dim, config.mlp_dim, config.init_std
        into = ("experts", "expert_embed", "mlp")
        self.config = config
        self.router = normal(rngs, (D, E), "router", "router", std=std)
        if config.mlp == "swiglu":
            self.gate = normal(rngs, (E, D, F), *into, std=std)
        self.up = normal(rngs, (E, D, F), *into, std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.down = normal(rngs, (E, F, D), "experts", "mlp", "expert_embed", std=std_out)

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        is_token_BT: jax.Array,
        places_T: jax.Array | None = None,
        keys_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord]:
        """Returns [B, T, D], zero where there is no token, and what the router did.

        Args:
            is_token_BT: False for padding, which is routed nowhere and counts nowhere.
            places_T: where in its row each column stands; None is in order.
            keys_BT: one random key a token, for dropout in training; None in evaluation.
        """
        config = self.config
        chosen, balance_B = self._route(x_BTD, is_token_BT)
        gate_EDF = self.gate[...].astype(x_BTD.dtype) if config.mlp == "swiglu" else None
        experts = Experts(
            gate_EDF, self.up[...].astype(x_BTD.dtype), self.down[...].astype(x_BTD.dtype)
        )
        y_BTD, dropped_B = compute_experts(config, experts, x_BTD, chosen, places_T)
        y_BTD = constrain(y_BTD, "act_batch", "act_block_len", "act_embed")
        y_BTD = dropout(checkpoint_name(y_BTD, "mlp_out"), config.dropout, keys_BT)
        return y_BTD, RouterRecord(balance_B, dropped_B)

    def _route(self, x_BTD: jax.Array, is_token_BT: jax.Array) -> tuple[Chosen, jax.Array]:
        """Returns the experts of each token and the balance times tokens of each row, in float32.

        The balance of a row is E sum_e f_e P_e, of f_e, the part of its choices that fall on expert
        e, and P_e, the mean probability of e. Source: Fedus et al. 2021, Switch Transformers,
        arXiv:2101.03961, eq. 4 to 6, by rows instead of the batch, so that no layout and no number
        of microbatches changes it.
        """
        E, A = self.router.shape[1], self.config.num_active_experts
        assert A is not None
        with jax.default_matmul_precision("float32"):
            logits_BTE = project(x_BTD.astype(jnp.float32), self.router[...], axes=("act_experts",))
        expert_BTA = jnp.where(is_token_BT[..., None], likeliest(logits_BTE, A), E)
        # By comparison and not by index: the gradient of a pick is a scatter, which does not stay
        # on the device that has the token.
        is_chosen_BTAE = expert_BTA[..., None] == jnp.arange(E)[None, None, None]
        chosen_BTA = jnp.sum(jnp.where(is_chosen_BTAE, logits_BTE[:, :, None], 0), axis=-1)
        probability_BTE = jnp.where(is_token_BT[..., None], jax.nn.softmax(logits_BTE), 0)
        load_BE = jnp.sum(is_chosen_BTAE, axis=(1, 2), dtype=jnp.float32)
        products_B = jnp.sum(load_BE * jnp.sum(probability_BTE, axis=1), axis=-1)
        num_choices_B = A * jnp.maximum(jnp.sum(is_token_BT, axis=1, dtype=jnp.float32), 1)
        chosen = Chosen(expert_BTA, jax.nn.softmax(chosen_BTA))
        return chosen, E * products_B / num_choices_B


def likeliest(logits_BTE: jax.Array, num: int) -> jax.Array:
    """Returns num different experts, the likeliest first and of equals the first, [B, T, num].

    One after the other: lax.top_k would gather the logits of all rows on every device. Experts are
    different even where logits are not finite, since buffers count on it.
    """
    left_BTE = jnp.nan_to_num(jax.lax.stop_gradient(logits_BTE))
    experts = []
    for _ in range(num):
        experts.append(jnp.argmax(left_BTE, axis=-1).astype(jnp.int32))
        is_taken_BTE = experts[-1][..., None] == jnp.arange(logits_BTE.shape[-1])[None, None]
        left_BTE = jnp.where(is_taken_BTE, -jnp.inf, left_BTE)
    return jnp.stack(experts, axis=-1)
