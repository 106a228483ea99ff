"""What a model reads of a batch: tokens and how they belong together, no targets."""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """Rows of tokens; all arrays are [B, T], but for the encoded text, which has its own length."""

    tokens_BT: jax.Array
    """Ids below the padded vocabulary, int32."""
    positions_BT: jax.Array
    """Place of each token in its document, int32."""
    segments_BT: jax.Array
    """A token sees tokens of its own segment only; 0 is padding; int32."""
    prefix_BT: jax.Array | None = None
    """True for tokens that all of their segment see, earlier ones too."""
    types_BT: jax.Array | None = None
    """0 in the first text of a segment, 1 in the second; int32."""
    encoder: "Inputs | None" = None
    """The text that is encoded; its segments are those that read it."""
