"""Which keys a query attends to and how they are scored, as a description.

An array of T x S is made only by a backend that needs one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30
"""Score of a key that is not attended to; not -inf: a query without any key must give a finite
gradient."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("segments_BT", "key_segments_BS", "prefix_BT", "row_index_T"),
    meta_fields=("kind", "window"),
)
@dataclass(frozen=True, kw_only=True)
class Mask:
    """What each query attends to; a tree of its arrays."""

    kind: Literal["causal", "full"]
    """causal: keys up to the query's own index in the row. full: all of them."""
    window: int | None = None
    """A query attends to keys less than this many tokens away, before it and, where it attends to
    later keys, after it; None is no limit."""
    segments_BT: jax.Array | None = None
    """Queries attend to keys of their own segment only; None is one segment."""
    key_segments_BS: jax.Array | None = None
    """Segments of keys of another sequence (the encoder's output); None is the same sequence."""
    prefix_BT: jax.Array | None = None
    """True for tokens that earlier tokens attend to as well (causal only)."""
    row_index_T: jax.Array | None = None
    """Index in its row of each column of the arrays; None is in order."""

    def allowed_BTS(self, length: int, key_length: int) -> jax.Array:
        """Returns the mask as booleans [B or 1, T, S], for a backend that needs them."""
        row_index_T = jnp.arange(length) if self.row_index_T is None else self.row_index_T
        row_index_S, key_segments_BS = row_index_T, self.segments_BT
        if self.key_segments_BS is not None:
            row_index_S, key_segments_BS = jnp.arange(key_length), self.key_segments_BS
        return self.between(
            row_index_T, row_index_S, self.segments_BT, key_segments_BS, self.prefix_BT
        )

    def between(
        self,
        query_index_T: jax.Array,
        key_index_S: jax.Array,
        query_segments_BT: jax.Array | None,
        key_segments_BS: jax.Array | None,
        key_prefix_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Returns which queries attend to which keys, of parts of rows, booleans [B or 1, T, S]."""
        distance_TS = query_index_T[:, None] - key_index_S[None, :]
        allowed_BTS = jnp.ones_like(distance_TS, bool)[None]
        if self.kind == "causal":
            allowed_BTS = (distance_TS >= 0)[None]
            if key_prefix_BS is not None:
                allowed_BTS = allowed_BTS | key_prefix_BS[:, None, :]
        if self.window is not None:
            allowed_BTS = allowed_BTS & (jnp.abs(distance_TS) < self.window)[None]
        if query_segments_BT is None or key_segments_BS is None:
            return allowed_BTS
        return allowed_BTS & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])


class Scoring(NamedTuple):
    """How the product of a query and a key becomes a score."""

    scale: float
    softcap: float | None = None
    """Scores become cap * tanh(score / cap)."""

    def __call__(self, product: jax.Array) -> jax.Array:
        score = product * self.scale
        return score if self.softcap is None else self.softcap * jnp.tanh(score / self.softcap)
