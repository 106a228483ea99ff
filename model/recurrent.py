"""Recurrent language models (LSTM, GRU), as baselines for attention."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from configs.model import ModelConfig
from model.block import LayerInputs
from model.dropout import dropout, fold, token_rng
from model.inputs import Inputs
from model.language_model import LanguageModel
from model.layers import run_layers
from model.matmul import in_float32
from model.moe.moe import RouterRecord
from model.parameters import normal, project, stacked, zeros
from sharding.pipeline import Pipeline
from sharding.rules import constrain


class Cell(nnx.Module):
    """A layer of an LSTM or a GRU; its state is reset where a document begins.

    Source: Hochreiter and Schmidhuber 1997, Long short-term memory, with the forget gate of Gers et
    al. 2000; Cho et al. 2014, arXiv:1406.1078, eq. 5 to 8, the reset gate after the matrix.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, std = config.embed_dim, config.init_std
        self.config = config
        self.num_gates = 4 if config.architecture == "lstm" else 3
        shape, axes = (D, self.num_gates, D), ("embed", "gates", "head_dim")
        self.input = normal(rngs, shape, *axes, std=std)
        self.hidden = normal(rngs, shape, *axes, std=std)
        self.input_bias = zeros((self.num_gates, D), "gates", "head_dim")
        self.hidden_bias = zeros((self.num_gates, D), "gates", "head_dim")

    def __call__(
        self,
        x_BTD: jax.Array,
        inputs: LayerInputs,
        *,
        row_index_T: jax.Array | None = None,
        is_local: bool = False,
    ) -> tuple[jax.Array, None]:
        """Returns the hidden state at each token, [B, T, D]; there is no router."""
        assert row_index_T is None  # the tokens of a row are computed one after the other
        assert not is_local
        segments_BT = inputs.segments_BT
        before_BT = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)))
        begins_BT = segments_BT != before_BT
        step = self._lstm if self.config.architecture == "lstm" else self._gru
        gates_BTGD = project(x_BTD, self.input[...], self.input_bias[...], axes=(None, None))
        hidden_DGD, bias_GD = self.hidden[...].astype(x_BTD.dtype), self.hidden_bias[...]
        zeros_BD = jnp.zeros((x_BTD.shape[0], x_BTD.shape[2]), jnp.float32)
        num_states = 2 if self.config.architecture == "lstm" else 1

        def advance(
            state: tuple[jax.Array, ...], token: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, ...], jax.Array]:
            gates_BGD, begins_B = token
            state = tuple(jnp.where(begins_B[:, None], 0, s_BD) for s_BD in state)
            h_BD = state[0].astype(x_BTD.dtype)
            more_BGD = in_float32(partial(jnp.einsum, "BD,DGE->BGE"), h_BD, hidden_DGD)
            state = step(gates_BGD.astype(jnp.float32), more_BGD + bias_GD[None], state)
            return state, state[0].astype(x_BTD.dtype)

        tokens = (jnp.moveaxis(gates_BTGD, 1, 0), begins_BT.T)
        _, y_TBD = jax.lax.scan(advance, (zeros_BD,) * num_states, tokens)
        y_BTD = dropout(jnp.moveaxis(y_TBD, 0, 1), self.config.dropout, inputs.rng_BT)
        return constrain(y_BTD, "act_batch", None, "act_embed"), None

    @staticmethod
    def _lstm(
        gates_BGD: jax.Array, more_BGD: jax.Array, state: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        write, forget, value, show = jnp.moveaxis(gates_BGD + more_BGD, 1, 0)
        c_BD = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(write) * jnp.tanh(value)
        return jax.nn.sigmoid(show) * jnp.tanh(c_BD), c_BD

    @staticmethod
    def _gru(
        gates_BGD: jax.Array, more_BGD: jax.Array, state: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        (reset, keep, value), (more_reset, more_keep, more_value) = (
            jnp.moveaxis(x, 1, 0) for x in (gates_BGD, more_BGD)
        )
        new_BD = jnp.tanh(value + jax.nn.sigmoid(reset + more_reset) * more_value)
        kept_BD = jax.nn.sigmoid(keep + more_keep)
        return ((1 - kept_BD) * new_BD + kept_BD * state[0],)


class Recurrent(LanguageModel):
    """Layers of an LSTM or a GRU, one on the other."""

    def __init__(self, config: ModelConfig, pipeline: Pipeline | None = None, *, rngs: nnx.Rngs):
        super().__init__(config)
        self.pipeline = pipeline or Pipeline()
        self.make_embedding(rngs)
        num = config.num_layers
        self.layers = stacked(lambda rngs: Cell(config, rngs=rngs), num, "layers", rngs)
        self.make_head(rngs)

    def run(
        self, inputs: Inputs, rng_B: jax.Array | None = None, row_index_T: jax.Array | None = None
    ) -> tuple[jax.Array, RouterRecord | None]:
        config, length = self.config, inputs.tokens_BT.shape[1]
        rng_BT = token_rng(rng_B, jnp.arange(length))
        x_BTD = constrain(self.embed_tokens(inputs.tokens_BT), "act_batch", None, "act_embed")
        x_BTD = dropout(x_BTD, config.dropout, fold(rng_BT, config.num_layers))
        layer_inputs = LayerInputs(inputs.positions_BT, inputs.segments_BT, rng_BT=rng_BT)
        x_BTD, _ = run_layers(
            self.layers, x_BTD, layer_inputs, row_index_T=row_index_T, pipeline=self.pipeline
        )
        return constrain(x_BTD, "act_batch", "act_len", "act_embed"), None
