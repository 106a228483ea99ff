"""A block of a Transformer, and stacks of blocks that one scan runs through."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

from configs.model import ModelConfig
from model.attention.attention import Attention, Memory
from model.attention.mask import Mask
from model.attention.mla import LatentAttention
from model.dropout import fold
from model.mlp import MLP
from model.moe.moe import MoE, RouterRecord
from model.norm import LayerNorm, RMSNorm, make_norm
from model.parameters import stacked
from sharding.pipeline import Pipeline, run_layers
from sharding.rules import constrain

_WHOLE_ROWS = ("act_batch", "act_len", "act_embed")
Norm = RMSNorm | LayerNorm | None


class Rows(NamedTuple):
    """What belongs to the rows of a batch and is the same in every layer; arrays [B, ...]."""

    positions_BT: jax.Array
    segments_BT: jax.Array
    prefix_BT: jax.Array | None = None
    keys_BT: jax.Array | None = None
    """One random key a token, for dropout in training."""
    memory: Memory | None = None
    """An encoded text beside these rows."""
    bias_BNTS: jax.Array | None = None
    """Added to the scores of attention."""


class Block(nnx.Module):
    """Attention and an MLP, or several experts, each added to the residual stream.

    Between the two, and between blocks, every token is by itself: there the residual stream is cut
    along the row as well. Source: Radford et al. 2019, Language models are unsupervised multitask
    learners, section 2.3; Korthikanti et al. 2022, arXiv:2205.05198, section 4.2 (the cut).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        reads_memory: bool = False,
        has_first_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes a block.

        Args:
            reads_memory: between the two halves there is attention to an encoded text.
            has_first_norm: the input of its attention is normalized where that is the place.
        """
        is_before = config.norm_placement in ("pre", "sandwich")
        is_behind = config.norm_placement != "pre"

        def make(needed: bool) -> Norm:
            return make_norm(config) if needed else None

        self.config = config
        self.attention_norm = make(is_before and has_first_norm)
        kind = Attention if config.attention == "mha" else LatentAttention
        self.attention = kind(config, rngs=rngs)
        self.attention_out_norm = make(is_behind)
        if reads_memory:
            self.cross_norm = make(is_before)
            self.cross = Attention(config, rngs=rngs)
            self.cross_out_norm = make(is_behind)
        self.reads_memory = reads_memory
        self.mlp_norm = make(is_before)
        self.mlp = (MLP if config.num_experts is None else MoE)(config, rngs=rngs)
        self.mlp_out_norm = make(is_behind)

    def __call__(
        self, x_BTD: jax.Array, rows: Rows, mask: Mask, *, is_local: bool = False
    ) -> tuple[jax.Array, RouterRecord | None]:
        """Returns the residual stream after the block, [B, T, D], and what its router did."""
        keys_BT, record = rows.keys_BT, None

        def attend(y_BTD: jax.Array) -> jax.Array:
            return self.attention(
                y_BTD,
                rows.positions_BT,
                mask,
                fold(keys_BT, 0),
                bias_BNTS=rows.bias_BNTS,
                is_local=is_local,
            )

        def read(y_BTD: jax.Array) -> jax.Array:
            memory = rows.memory
            assert memory is not None
            sees = Mask(
                kind="full", segments_BT=rows.segments_BT, key_segments_BS=memory.segments_BS
            )
            return self.cross(y_BTD, rows.positions_BT, sees, fold(keys_BT, 2), memory=memory)

        def think(y_BTD: jax.Array) -> jax.Array:
            nonlocal record
            if isinstance(self.mlp, MLP):
                return self.mlp(y_BTD, fold(keys_BT, 1))
            y_BTD, record = self.mlp(
                y_BTD,
                is_token_BT=rows.segments_BT > 0,
                places_T=mask.places_T,
                keys_BT=fold(keys_BT, 1),
            )
            return y_BTD

        x_BTD = self._add(x_BTD, attend, self.attention_norm, self.attention_out_norm)
        if self.reads_memory:
            x_BTD = self._add(x_BTD, read, self.cross_norm, self.cross_out_norm)
        return self._add(x_BTD, think, self.mlp_norm, self.mlp_out_norm), record

    def _add(
        self,
        x_BTD: jax.Array,
        function: Callable[[jax.Array], jax.Array],
        before: Norm,
        after: Norm,
    ) -> jax.Array:
        """Adds a function of the residual stream to it, norms where the settings place them."""
        y_BTD = x_BTD if before is None else before(x_BTD)
        y_BTD = function(constrain(y_BTD, *_WHOLE_ROWS))
        if after is not None and self.config.norm_placement != "post":
            y_BTD = after(y_BTD)
        x_BTD = x_BTD + y_BTD
        if after is not None and self.config.norm_placement == "post":
            x_BTD = after(x_BTD)
        return constrain(x_BTD, "act_batch", "act_block_len", "act_embed")


def make_stack(
    config: ModelConfig,
    num: int,
    *,
    axis: str = "layers",
    reads_memory: bool = False,
    has_first_norm: bool = True,
    rngs: nnx.Rngs,
) -> Block:
    """Returns num blocks as one whose parameters are stacked, [L, ...], under a logical axis."""

    def make(rngs: nnx.Rngs) -> Block:
        return Block(config, reads_memory=reads_memory, has_first_norm=has_first_norm, rngs=rngs)

    return stacked(make, num, axis, rngs)


def run_stack(
    stack: Block,
    x_BTD: jax.Array,
    rows: Rows,
    record: RouterRecord | None,
    *,
    kind: Literal["causal", "full"],
    places_T: jax.Array | None = None,
    pipeline: Pipeline | None = None,
    first: int = 0,
) -> tuple[jax.Array, RouterRecord | None]:
    """Returns the residual stream after all blocks of a stack, and the sum of what routers did.

    Args:
        record: what routers did before.
        kind: of the mask.
        first: number in the model of the first block.
    """
    config = stack.config
    graph, params_L = nnx.split(stack)

    def make_apply(place: int) -> Any:
        is_local = config.is_local(first + place)

        def apply_block(carry: Any, rows: Rows, number: jax.Array, params: Any) -> Any:
            x_BTD, record = carry
            block: Block = nnx.merge(graph, params)
            mask = Mask(
                kind=kind,
                window=config.attention_window if is_local else None,
                segments_BT=rows.segments_BT,
                prefix_BT=rows.prefix_BT,
                places_T=places_T,
            )
            rows = rows._replace(keys_BT=fold(rows.keys_BT, first + number))
            x_BTD, more = block(x_BTD, rows, mask, is_local=is_local)
            return x_BTD, record if more is None else record.add(more, number)

        return _with_remat(apply_block, config)

    pipeline, num_unrolled = pipeline or Pipeline(), config.num_unrolled_layers
    if num_unrolled == "auto":
        num_unrolled = config.num_layers if pipeline.unrolls else 1
    return run_layers(
        [make_apply(place) for place in range(config.period)],
        (x_BTD, record),
        rows,
        params_L,
        pipeline,
        num_unrolled=num_unrolled,
    )


def _with_remat(apply_block: Any, config: ModelConfig) -> Any:
    """Returns the block with what its backward pass computes again."""
    policies = jax.checkpoint_policies
    match config.remat:
        case "none":
            return apply_block
        case "dots":
            policy = policies.dots_with_no_batch_dims_saveable
            if config.num_experts is not None:  # whose grouped matmuls are no dots to JAX
                names = policies.save_only_these_names("gate", "up", "mlp_out")
                policy = policies.save_from_both_policies(policy, names)
        case "full":
            policy = policies.nothing_saveable
        case "named":
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=list(config.remat_saved),
                names_which_can_be_offloaded=list(config.remat_offloaded),
                offload_src="device",
                offload_dst="pinned_host",
            )
    return jax.checkpoint(apply_block, policy=policy, prevent_cse=False)
