"""What a decoder writes beside an encoder that reads a prompt."""

from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.model import ModelConfig
from configs.run import SampleConfig
from data.tokenizers.tokenizer import Tokenizer
from model.inputs import Inputs
from model.transformer import Transformer
from sharding.rules import constrain
from train.generation.sampling import Generate, as_rows, draw, encode_with, num_missing, up_to
from train.optimizer import Params
from train.state import shape_of

FIRST_SPAN = "<extra_id_0>"


def make_answer(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    sequence_len: int,
    target_len: int,
) -> Generate:
    """Returns the function from (params, prompts, seed) to each prompt with what was found for it.

    Where the tokenizer has tokens that stand for spans, a prompt may have them from <extra_id_0>
    on, and has that one at its end otherwise; each is replaced with what the decoder finds for it.
    An answer ends at the separator, or after sample.num_tokens or target_len.
    """
    shape = shape_of(model)
    spans = {name: i for name, i in tokenizer.special.items() if name.startswith("<extra_id_")}
    begin = [tokenizer.separator, *([spans[FIRST_SPAN]] if spans else [])]
    end = min(target_len, len(begin) + sample.num_tokens)

    @jax.jit
    def write(params: Params, encoded: Inputs, key: jax.Array) -> jax.Array:
        module = shape.merge(params)
        assert isinstance(module, Transformer)
        B = len(encoded.tokens_BT)
        memory = module.encode(encoded)
        positions_BT = jnp.broadcast_to(jnp.arange(end), (B, end))
        text_BT = jnp.zeros((B, end), jnp.int32).at[:, : len(begin)].set(jnp.array(begin))

        def write_next(place: jax.Array, text_BT: jax.Array) -> jax.Array:
            inputs = Inputs(text_BT, positions_BT, jnp.ones_like(text_BT))
            hidden_BTD, _ = module.decode(inputs, memory)
            last_B1D = jax.lax.dynamic_slice_in_dim(hidden_BTD, place - 1, 1, axis=1)
            logits_BV = module.logits(last_B1D)[:, 0]
            drawn_B = draw(logits_BV, sample, jax.random.fold_in(key, place))
            return text_BT.at[:, place].set(drawn_B)

        text_BT = jax.lax.fori_loop(len(begin), end, write_next, text_BT)
        return constrain(text_BT, None, None)

    def answer(params: Params, prompts: Sequence[str], seed: int) -> list[str]:
        rows = [_encode(tokenizer, prompt, spans, sequence_len) for prompt in prompts]
        rows += rows[:1] * num_missing(len(rows), None)
        tokens_BS, segments_BS = as_rows(rows, sequence_len)
        positions_BS = np.broadcast_to(np.arange(sequence_len, dtype=np.int32), tokens_BS.shape)
        arrays = tokens_BS, positions_BS, segments_BS
        encoded = jax.tree.map(jnp.asarray, Inputs(*arrays))  # pyright: ignore[reportArgumentType]
        written_BT = np.asarray(write(params, encoded, jax.random.key(seed)))[:, 1:]
        return [
            tokenizer.decode(put_in(row[1:], up_to(written, tokenizer.separator), spans.values()))
            for row, written in zip(rows, written_BT, strict=True)
        ][: len(prompts)]

    return answer


def _encode(
    tokenizer: Tokenizer, prompt: str, spans: Mapping[str, int], sequence_len: int
) -> list[int]:
    """Returns the separator and a prompt, of which as much as fits; with a span at its end."""
    ids = [tokenizer.separator, *encode_with(tokenizer, prompt, spans)]
    if not spans or spans[FIRST_SPAN] in ids:
        return ids[:sequence_len]
    return [*ids[: sequence_len - 1], spans[FIRST_SPAN]]


def put_in(asked: Sequence[int], written: np.ndarray, spans: Collection[int]) -> list[int]:
    """Returns what was asked with the tokens behind each span in its place; or behind all of it."""
    found: dict[int, list[int]] = {}
    place = -1
    for token in written.tolist():
        if token in spans:
            place = token
        else:
            found.setdefault(place, []).append(token)
    text = [x for token in asked for x in (found.get(token, []) if token in spans else [token])]
    return text if spans else text + found.get(place, [])
