"""Mixture of experts (MoE): the feed-forward half of a block, and its router."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from configs.model import ModelConfig
from model.dropout import dropout, fold
from model.mlp import MLP
from model.moe.dispatch import Chosen, Experts, compute_experts
from model.parameters import broadcast, normal, project, zeros
from sharding.rules import constrain


class RouterRecord(NamedTuple):
    """What routers did, as sums over the tokens of each row; layers add up."""

    balance_B: jax.Array
    """The load-balance loss times the tokens of the row: over those it is 1 where the load is even,
    E where one expert gets everything."""
    z_B: jax.Array
    """The square of the logsumexp of the scores, summed over tokens."""
    dropped_B: jax.Array
    """Choices beyond the capacity of their expert, of A for each token."""
    load_BLE: jax.Array
    """Choices that fell on each expert of each layer, int32."""

    @classmethod
    def zeros(cls, config: ModelConfig, num_rows: int) -> "RouterRecord | None":
        """Returns the record before the first layer; None where there are no experts."""
        if config.num_experts is None:
            return None
        zeros_B = jnp.zeros(num_rows, jnp.float32)
        shape = (num_rows, config.num_layers - config.num_leading_layers, config.num_experts)
        return cls(zeros_B, zeros_B, zeros_B, jnp.zeros(shape, jnp.int32))

    def add(self, more: "RouterRecord", number: jax.Array) -> "RouterRecord":
        """Returns the record with that of a layer [B, 1, E], which has this number."""
        return RouterRecord(
            self.balance_B + more.balance_B,
            self.z_B + more.z_B,
            self.dropped_B + more.dropped_B,
            jax.lax.dynamic_update_slice_in_dim(self.load_BLE, more.load_BLE, number, axis=1),
        )

    def over_rows(self) -> "RouterSums":
        """Returns the sums over all rows."""
        sums = (jnp.sum(x_B) for x_B in self[:3])
        return RouterSums(*sums, load_LE=jnp.sum(self.load_BLE, axis=0))


class RouterSums(NamedTuple):
    """A RouterRecord summed over rows: those of the parts of a batch add up to those of it all."""

    balance: jax.Array
    z: jax.Array
    dropped: jax.Array
    load_LE: jax.Array


class MoE(nnx.Module):
    """The weighted sum over the A likeliest of E experts, each an MLP, for each token.

    There may also be shared experts, which compute every token: here one MLP of their width.
    Source: Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, section 2.1; DeepSeek-AI 2024,
    DeepSeek-V3, arXiv:2412.19437, section 2.1.2 (shared experts, sigmoid, bias).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        assert config.num_experts is not None
        assert not config.bias
        E, D, F, std = config.num_experts, config.embed_dim, config.expert_width, config.init_std
        into = ("experts", "expert_embed", "mlp")
        self.config = config
        self.router = normal(rngs, (D, E), "router_embed", "router", std=std)
        self.router_bias = zeros((E,), "router") if config.router_bias else None
        self.gate = normal(rngs, (E, D, F), *into, std=std) if config.is_gated else None
        self.up = normal(rngs, (E, D, F), *into, std=std)
        std_out = std / (2 * config.num_layers) ** 0.5
        self.down = normal(rngs, (E, F, D), "experts", "mlp", "expert_embed", std=std_out)
        dim = config.num_shared_experts * F
        self.shared = MLP(config, dim=dim, rngs=rngs) if dim else None

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        is_token_BT: jax.Array,
        row_index_T: jax.Array | None = None,
        rng_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterRecord]:
        """Returns [B, T, D] and what the router did; padding is zero, and routed nowhere."""
        config = self.config
        chosen, record = self._route(x_BTD, is_token_BT)
        gate_EDF = None if self.gate is None else self.gate[...].astype(x_BTD.dtype)
        up_EDF, down_EFD = (w[...].astype(x_BTD.dtype) for w in (self.up, self.down))
        experts = Experts(gate_EDF, up_EDF, down_EFD)
        y_BTD, dropped_B = compute_experts(config, experts, x_BTD, chosen, row_index_T)
        y_BTD = constrain(y_BTD, "act_batch", "act_block_len", "act_embed")
        y_BTD = dropout(checkpoint_name(y_BTD, "mlp_out"), config.dropout, rng_BT)
        if self.shared is not None:
            is_token_BT1 = constrain(is_token_BT, "act_batch", "act_block_len")[..., None]
            y_BTD += jnp.where(is_token_BT1, self.shared(x_BTD, fold(rng_BT, 0)), 0)
        return y_BTD, record._replace(dropped_B=dropped_B)

    def _route(self, x_BTD: jax.Array, is_token_BT: jax.Array) -> tuple[Chosen, RouterRecord]:
        """Returns the experts of each token, and what the router did without what was dropped.

        The balance of a row is E sum_e f_e P_e, of f_e, the part of its choices that fall on expert
        e, and P_e, the mean probability of e. Source: Fedus et al. 2021, Switch Transformers,
        arXiv:2101.03961, eq. 4 to 6, by rows instead of the batch, so that no layout and no number
        of microbatches changes it; Zoph et al. 2022, ST-MoE, arXiv:2202.08906, eq. 5 (z).
        """
        config, E, A = self.config, self.router.shape[1], self.config.num_active_experts
        assert A is not None
        with jax.default_matmul_precision("float32"):
            logits_BTE = project(x_BTD.astype(jnp.float32), self.router[...], axes=("act_experts",))
        expert_BTA = jnp.where(is_token_BT[..., None], self._choose(logits_BTE, A), E)
        # By comparison and not by index: the gradient of a pick is a scatter, which does not stay
        # on the device that has the token.
        is_chosen_BTAE = expert_BTA[..., None] == jnp.arange(E)[None, None, None]
        score_BTE = _probabilities(config, logits_BTE)
        if config.router == "softmax" and config.router_normalized:
            weight_BTA = jax.nn.softmax(_pick(logits_BTE, is_chosen_BTAE))
        else:
            weight_BTA = _pick(score_BTE, is_chosen_BTAE)
            if config.router_normalized:
                weight_BTA /= jnp.sum(weight_BTA, axis=-1, keepdims=True) + 1e-20
        share_BTE = score_BTE
        if config.router == "sigmoid":
            share_BTE = score_BTE / (jnp.sum(score_BTE, axis=-1, keepdims=True) + 1e-20)
        share_BTE = jnp.where(is_token_BT[..., None], share_BTE, 0)
        z_BT = jnp.where(is_token_BT, jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)), 0)
        load_BE = jnp.sum(is_chosen_BTAE, axis=(1, 2), dtype=jnp.int32)
        products_B = jnp.sum(load_BE * jnp.sum(share_BTE, axis=1), axis=-1)
        num_choices_B = A * jnp.maximum(jnp.sum(is_token_BT, axis=1, dtype=jnp.float32), 1)
        balance_B, z_B = E * products_B / num_choices_B, jnp.sum(z_BT, axis=1)
        record = RouterRecord(balance_B, z_B, jnp.zeros_like(z_B), load_BE[:, None])
        return Chosen(expert_BTA, config.router_scale * weight_BTA), record

    def _choose(self, logits_BTE: jax.Array, num: int) -> jax.Array:
        """Returns the experts of each token, by scores, biases and groups, [B, T, num].

        Letter: G groups of experts. Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437,
        section 2.1.2, its code for groups.
        """
        config, choice_BTE = self.config, logits_BTE
        if self.router_bias is not None:
            bias = broadcast(self.router_bias[...], logits_BTE)
            choice_BTE = _probabilities(config, logits_BTE) + bias
        elif config.num_expert_groups > 1:
            choice_BTE = _probabilities(config, logits_BTE)
        if config.num_expert_groups > 1:
            groups = choice_BTE.reshape(*choice_BTE.shape[:2], config.num_expert_groups, -1)
            best_BTG2 = jnp.sort(groups, axis=-1)[..., -2:]
            chosen = likeliest(jnp.sum(best_BTG2, axis=-1), config.num_active_groups)
            numbers = jnp.arange(config.num_expert_groups)[None, None, :, None]
            is_open = jnp.any(numbers == chosen[:, :, None], axis=-1, keepdims=True)
            choice_BTE = jnp.where(is_open, groups, -1e30).reshape(choice_BTE.shape)
        return likeliest(choice_BTE, num)


def _probabilities(config: ModelConfig, logits_BTE: jax.Array) -> jax.Array:
    function = jax.nn.softmax if config.router == "softmax" else jax.nn.sigmoid
    return function(logits_BTE)


def _pick(values_BTE: jax.Array, is_chosen_BTAE: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(is_chosen_BTAE, values_BTE[:, :, None], 0), axis=-1)


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
