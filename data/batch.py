"""The type of a batch, which every objective makes and every model reads."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

Array = TypeVar("Array")
"""A numpy array on the host, a JAX array on devices, or the shape of either."""

Other = TypeVar("Other")


class EncoderInputs(NamedTuple, Generic[Array]):
    """Inputs of an encoder; all arrays are [B, S]."""

    tokens_BS: Array
    segments_BS: Array
    """The segment of the decoder's row that attends to a token, from 1; 0 is padding; int32."""
    positions_BS: Array


class Batch(NamedTuple, Generic[Array]):
    """Inputs and targets of a step; all arrays are [B, T].

    Arrays that an objective does not use are None. Field names enter `batch_digest`.
    """

    tokens_BT: Array
    """Inputs, int32."""
    targets_BT: Array
    """The target of each position, int32."""
    weights_BT: Array
    """1 where the target counts in the loss, else 0; float32."""
    segments_BT: Array
    """The document of the row that a token belongs to, from 1; 0 is padding; int32."""
    positions_BT: Array
    """Position of the token in its document within the row, from 0; int32."""
    prefix_BT: Array | None = None
    """True for tokens of a prefix that all of the document attends to; bool."""
    types_BT: Array | None = None
    """Token types: 0 in the first text of a segment, 1 in the second; int32."""
    next_BT: Array | None = None
    """Target of next-sentence prediction, at the first token of a pair of texts: 1 if the second
    follows the first in a document, 2 if not; 0 elsewhere; int32."""
    encoder: EncoderInputs[Array] | None = None

    def map(self, function: Callable[[Array], Other]) -> "Batch[Other]":
        def apply(array: Any) -> Any:
            if isinstance(array, EncoderInputs):
                return EncoderInputs(*map(function, array))
            return None if array is None else function(array)

        return Batch(*map(apply, self))
