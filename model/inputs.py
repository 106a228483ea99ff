"""The inputs of a model: the tokens of a batch and how they belong together, no targets."""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """Rows of tokens; all arrays are [B, T], those of the encoder [B, S]."""

    tokens_BT: jax.Array
    """Ids below the padded vocabulary, int32."""
    positions_BT: jax.Array
    """Index of each token in its document, int32."""
    segments_BT: jax.Array
    """A token attends to tokens of its own segment only; 0 is padding; int32."""
    prefix_BT: jax.Array | None = None
    """True for tokens that all tokens of their segment attend to, earlier ones too."""
    types_BT: jax.Array | None = None
    """0 in the first text of a segment, 1 in the second; int32."""
    encoder: "Inputs | None" = None
    """Inputs of the encoder; its segments are those of the decoder that attend to them."""
