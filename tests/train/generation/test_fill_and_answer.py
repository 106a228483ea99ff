"""What an encoder fills in and a model of two parts answers is what plain readings find."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import KINDS, TOKENIZER
from small_model import quick_jit, random_params

from configs.run import SampleConfig
from model.inputs import Inputs
from train.generation.fill_and_answer import FIRST_SENTINEL, MASK, insert_spans
from train.generation.generate import make_generate
from train.optimizer import Params
from train.state import shape_of

T = 16
GREEDY = SampleConfig(num_tokens=9, temperature=0)
BY_CHANCE = SampleConfig(num_tokens=9, temperature=1.0, top_k=None)
FILLED = ("12[MASK]34", "[MASK]5[MASK][MASK]", "678", "")
ANSWERED = ("1234", "9", "", "5678" * 5)
LATER = ["0123456789:;<=>?@ABCDEF[MASK]"]
MODELS = {
    name: KINDS[name].changed(tied_embeddings=False).model
    for name in ("bert", "modernbert", "t5", "first_transformer")
}
"""A model whose head is its embedding says again and again what it read."""
by_encoder = pytest.mark.parametrize("name", ["bert", "modernbert"])


@functools.cache
def params_of(name: str) -> Params:
    """Returns parameters that say one thing here and another there, mostly letters."""
    params = random_params(MODELS[name], std=0.5)
    is_letter = np.arange(MODELS[name].num_padded_tokens) < TOKENIZER.separator
    return {**params, "head": params["head"] * np.where(is_letter, 1.0, 0.3)[None]}


def inputs_of(ids: list[int], length: int | None = None) -> Inputs:
    """Returns a row of one text, with padding behind it up to a length."""
    row = jnp.asarray([*ids, *[0] * ((length or len(ids)) - len(ids))], jnp.int32)[None]
    places = jnp.arange(row.shape[1])[None]
    return Inputs(row, places, (places < len(ids)).astype(jnp.int32))


@functools.cache
def likeliest(name: str):
    """Returns the function from (params, inputs) of one text to the likeliest id at each place."""

    @quick_jit
    def likeliest(params: Params, inputs: Inputs) -> jax.Array:
        module = shape_of(MODELS[name]).merge(params)
        return jnp.argmax(module.logits(module(inputs))[0], axis=-1)

    return lambda params, inputs: np.asarray(likeliest(params, inputs)).tolist()


@by_encoder
def test_each_masked_token_becomes_what_its_text_alone_says(name):
    params, special = params_of(name), TOKENIZER.special
    expected = []
    for prompt in FILLED:
        ids, pieces = [special["[CLS]"]], (prompt if MASK in prompt else prompt + MASK).split(MASK)
        for i, piece in enumerate(pieces):
            ids += [special[MASK]] * (i > 0) + TOKENIZER.encode(piece).tolist()
        ids.append(special["[SEP]"])
        found = likeliest(name)(params, inputs_of(ids))
        places = [i for i, token in enumerate(ids) if token == special[MASK]]
        assert any(found[i] < TOKENIZER.separator for i in places)
        expected.append(
            TOKENIZER.decode([found[i] if i in places else x for i, x in enumerate(ids)])
        )

    generate = make_generate(MODELS[name], GREEDY, TOKENIZER, T)
    assert generate(params, FILLED, 0) == expected


@by_encoder
def test_of_a_long_prompt_as_much_is_read_as_fits(name):
    generate = make_generate(MODELS[name], GREEDY, TOKENIZER, T)
    assert generate(params_of(name), LATER, 0) == [LATER[0][: T - 1]]


@by_encoder
def test_what_is_filled_in_by_chance_follows_the_seed(name):
    params = random_params(MODELS[name], std=0.05)
    generate = make_generate(MODELS[name], BY_CHANCE, TOKENIZER, T)
    assert generate(params, FILLED, 1) == generate(params, FILLED, 1)
    assert generate(params, FILLED, 1) != generate(params, FILLED, 2)


def answer_greedily(name: str, params: Params, prompt: str, target_len: int) -> list[int]:
    """Returns what is answered: the growing target is read anew for each token.

    There is padding behind the target, which no earlier token sees, so that one program reads all.
    """
    span = [TOKENIZER.special[FIRST_SENTINEL]]
    asked = [TOKENIZER.separator, *TOKENIZER.encode(prompt).tolist()][: T - 1] + span
    target = [TOKENIZER.separator, *span]
    while len(target) < min(target_len, 2 + GREEDY.num_tokens):
        inputs = inputs_of(target, target_len)._replace(encoder=inputs_of(asked))
        target.append(likeliest(name)(params, inputs)[len(target) - 1])
    return target[2:]


@pytest.mark.parametrize(("name", "target_len"), [("t5", 14), ("first_transformer", 7)])
def test_an_answer_is_that_of_a_plain_loop(name, target_len):
    params = params_of(name)
    answers = [answer_greedily(name, params, prompt, target_len) for prompt in ANSWERED]
    assert len(set(map(tuple, answers))) >= 3
    expected = [
        prompt[: T - 2] + TOKENIZER.decode(before_the_next(answer))
        for prompt, answer in zip(ANSWERED, answers, strict=True)
    ]
    generate = make_generate(MODELS[name], GREEDY, TOKENIZER, T, target_len)
    assert generate(params, ANSWERED, 0) == expected


def before_the_next(ids: list[int]) -> list[int]:
    """Returns what is found for the first span: up to the separator or another span."""
    return list(itertools.takewhile(lambda token: token < TOKENIZER.separator, ids))


def test_an_answer_ends_at_the_separator():
    model = MODELS["t5"]
    params = params_of("t5")
    letter = answer_greedily("t5", params, ANSWERED[0], T)[3]
    swap = np.arange(model.num_padded_tokens)
    swap[[letter, TOKENIZER.separator]] = TOKENIZER.separator, letter
    params = {**params, "head": params["head"][:, swap]}
    answer = answer_greedily("t5", params, ANSWERED[0], T)
    assert TOKENIZER.separator in answer
    generate = make_generate(model, GREEDY, TOKENIZER, T, T)
    expected = ANSWERED[0] + TOKENIZER.decode(before_the_next(answer))
    assert generate(params, ANSWERED[:1], 0) == [expected]


def test_what_is_found_for_each_span_stands_in_its_place():
    spans = [TOKENIZER.special[f"<extra_id_{i}>"] for i in range(3)]
    written = np.array([spans[0], 5, 6, spans[2], 7, spans[1], 8])
    asked = [1, spans[0], 2, spans[1], spans[2], 3]
    assert insert_spans(asked, written, spans) == [1, 5, 6, 2, 8, 7, 3]
    assert insert_spans([1, 2], np.array([5, 6]), []) == [1, 2, 5, 6]


def test_a_prompt_may_say_where_its_spans_are():
    prompt = "12<extra_id_0>34<extra_id_1>"
    generate = make_generate(MODELS["t5"], GREEDY, TOKENIZER, T, T)
    (text,) = generate(params_of("t5"), [prompt], 0)
    assert re.fullmatch("12.*34.*", text, re.DOTALL)
    assert text != "1234"
