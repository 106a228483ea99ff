"""Which keys a query sees, described and not drawn: an array of T x S is made by who needs one."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What each query of a row sees."""

    kind: Literal["causal", "full"]
    """causal: keys up to the query's own place in the row. full: all of them."""
    window: int | None = None
    """Causal only: a query sees so many keys at most, its own the last of them; None is all."""
    segments_BT: jax.Array | None = None
    """Queries see keys of their own segment only; None is one segment."""
    places_T: jax.Array | None = None
    """Where in its row each column of the arrays stands; None is in order."""

    def allowed_BTS(self, length: int) -> jax.Array:
        """Returns the description as booleans [B or 1, T, S], for a backend that needs them."""
        places_T = jnp.arange(length) if self.places_T is None else self.places_T
        return self.between(places_T, places_T, self.segments_BT, self.segments_BT)

    def between(
        self,
        query_places_T: jax.Array,
        key_places_S: jax.Array,
        query_segments_BT: jax.Array | None,
        key_segments_BS: jax.Array | None,
    ) -> jax.Array:
        """Returns which of some queries see which of some keys, booleans [B or 1, T, S]."""
        distance_TS = query_places_T[:, None] - key_places_S[None, :]
        allowed_TS = jnp.ones_like(distance_TS, bool)
        if self.kind == "causal":
            allowed_TS = distance_TS >= 0
        if self.window is not None:
            allowed_TS = allowed_TS & (distance_TS < self.window)
        if query_segments_BT is None or key_segments_BS is None:
            return allowed_TS[None]
        return allowed_TS[None] & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])
