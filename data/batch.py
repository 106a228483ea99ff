"""The one type that every objective fills and every model and step reads."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

Array = TypeVar("Array")
"""numpy's on the host, JAX's on the devices, or the shape of either."""

Other = TypeVar("Other")


class EncoderInputs(NamedTuple, Generic[Array]):
    """Texts that are encoded for a decoder to read; all arrays are [B, S]."""

    tokens_BS: Array
    segments_BS: Array
    """Which segment of the decoder's row reads a token, from 1; 0 is padding; int32."""
    positions_BS: Array


class Batch(NamedTuple, Generic[Array]):
    """Rows of tokens and what is to be predicted from them; all arrays are [B, T].

    Those that an objective has no use for are None.
    """

    tokens_BT: Array
    """Inputs, int32."""
    targets_BT: Array
    """What each position predicts, int32."""
    weights_BT: Array
    """1 where the target counts, 0 where it is padding; float32."""
    segments_BT: Array
    """Which document of the row a token belongs to, from 1; 0 is padding; int32."""
    positions_BT: Array
    """Place of the token in its document within the row, from 0; int32."""
    prefix_BT: Array | None = None
    """True for tokens that all of their document see; bool."""
    types_BT: Array | None = None
    """0 in the first text of a segment, 1 in the second; int32."""
    next_BT: Array | None = None
    """At the first token of a pair of texts 1 where the second follows the first in a document and
    2 where it does not; 0 elsewhere; int32."""
    encoder: EncoderInputs[Array] | None = None

    def map(self, function: Callable[[Array], Other]) -> "Batch[Other]":
        """Returns the batch with a function applied to each array that it has."""

        def apply(array: Any) -> Any:
            if isinstance(array, EncoderInputs):
                return EncoderInputs(*map(function, array))
            return None if array is None else function(array)

        return Batch(*map(apply, self))
