"""Which keys a query sees and how they are scored, described and not drawn.

An array of T x S is made by who needs one.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What each query of a row sees."""

    kind: Literal["causal", "full"]
    """causal: keys up to the query's own place in the row. full: all of them."""
    window: int | None = None
    """A query sees keys that are fewer places away than this, to the side or sides that it looks
    to; None is all."""
    segments_BT: jax.Array | None = None
    """Queries see keys of their own segment only; None is one segment."""
    key_segments_BS: jax.Array | None = None
    """Segments of keys that are not those of the queries (an encoded text); None is the same."""
    prefix_BT: jax.Array | None = None
    """True for tokens that later and earlier ones see alike: those of a prefix (causal only)."""
    places_T: jax.Array | None = None
    """Where in its row each column of the arrays stands; None is in order."""

    def allowed_BTS(self, length: int, key_length: int | None = None) -> jax.Array:
        """Returns the description as booleans [B or 1, T, S], for a backend that needs them.

        Args:
            key_length: of keys that are not those of the queries; None is the same.
        """
        places_T = jnp.arange(length) if self.places_T is None else self.places_T
        places_S = places_T if key_length is None else jnp.arange(key_length)
        own = self.key_segments_BS is None
        key_segments_BS = self.segments_BT if own else self.key_segments_BS
        return self.between(places_T, places_S, self.segments_BT, key_segments_BS, self.prefix_BT)

    def between(
        self,
        query_places_T: jax.Array,
        key_places_S: jax.Array,
        query_segments_BT: jax.Array | None,
        key_segments_BS: jax.Array | None,
        key_prefix_BS: jax.Array | None = None,
    ) -> jax.Array:
        """Returns which of some queries see which of some keys, booleans [B or 1, T, S]."""
        distance_TS = query_places_T[:, None] - key_places_S[None, :]
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
        """Returns the scores of products."""
        score = product * self.scale
        return score if self.softcap is None else self.softcap * jnp.tanh(score / self.softcap)
