"""The one type that every objective fills and every model and step reads."""

from typing import Generic, NamedTuple, TypeVar

Array = TypeVar("Array")
"""numpy's on the host, JAX's on the devices, or the shape of either."""


class Batch(NamedTuple, Generic[Array]):
    """Rows of tokens and what is to be predicted from them; all arrays are [B, T]."""

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
