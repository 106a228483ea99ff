"""What a decoder writes beside an encoder that reads a prompt."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.model import ModelConfig
from configs.run import SampleConfig
from data.tokenizers.tokenizer import Tokenizer
from model.inputs import Inputs
from model.transformer import Transformer
from sharding.rules import constrain
from train.draw import Generate, as_rows, draw, num_missing, up_to
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

    Where the tokenizer has a token that stands for a span, it is put at the end of the prompt, and
    the decoder begins with it: it writes what would go on there. An answer ends at the separator,
    or after sample.num_tokens or target_len.
    """
    shape = shape_of(model)
    span = [tokenizer.special[FIRST_SPAN]] if FIRST_SPAN in tokenizer.special else []
    begin = [tokenizer.separator, *span]
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
        rows = [
            [tokenizer.separator, *tokenizer.encode(prompt)][: sequence_len - len(span)] + span
            for prompt in prompts
        ]
        rows += rows[:1] * num_missing(len(rows), None)
        tokens_BS, segments_BS = as_rows(rows, sequence_len)
        positions_BS = np.broadcast_to(np.arange(sequence_len, dtype=np.int32), tokens_BS.shape)
        arrays = tokens_BS, positions_BS, segments_BS
        encoded = jax.tree.map(jnp.asarray, Inputs(*arrays))  # pyright: ignore[reportArgumentType]
        found_BT = np.asarray(write(params, encoded, jax.random.key(seed)))[:, len(begin) :]
        return [
            prompt + tokenizer.decode(up_to(found, tokenizer.separator))
            for prompt, found in zip(prompts, found_BT, strict=False)
        ]

    return answer
