"""Tensors that families have in common: embedding and head, linear layers and norms with a bias."""

from collections.abc import Iterator

from configs.model import ModelConfig
from model.hf.tensors import HFTensor, Shape, padded, reshaped, transposed


def embedding(config: ModelConfig, name: str) -> HFTensor:
    """Returns the token embedding."""
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    return padded(name, reshaped("", "embedding", (), (P, D), (P, D)), V, P)


def head(config: ModelConfig) -> Iterator[HFTensor]:
    """Yields the output head, unless it is the embedding."""
    V, P, D = config.num_tokens, config.num_padded_tokens, config.embed_dim
    if not config.tied_embeddings:
        yield padded("lm_head.weight", transposed("", "head", (), (D, P)), V, P)


def head_bias(config: ModelConfig, name: str, *, is_row: bool = False) -> HFTensor:
    """Returns the bias of the logits, [V], or [1, V] if it is a row."""
    V, P = config.num_tokens, config.num_padded_tokens
    bias = reshaped("", "head_bias", (), (P,), (1, P) if is_row else (P,))
    return padded(name, bias, V, P, axis=1 if is_row else 0)


def linear(
    hf_name: str, path: str, index: tuple[int, ...], shape: Shape, num_in: int = 1
) -> Iterator[HFTensor]:
    """Yields the matrix of a linear layer and its bias."""
    yield transposed(f"{hf_name}.weight", path, index, shape, num_in)
    yield reshaped(f"{hf_name}.bias", f"{path}_bias", index, shape[num_in:])


def layer_norm(hf_name: str, path: str, index: tuple[int, ...], dim: int) -> Iterator[HFTensor]:
    """Yields the scale of a layer norm and its bias."""
    yield reshaped(f"{hf_name}.weight", f"{path}/scale", index, (dim,))
    yield reshaped(f"{hf_name}.bias", f"{path}/bias", index, (dim,))
