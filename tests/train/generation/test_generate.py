import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import mesh_of, quick_jit, random_params, small_model

from configs.run import SampleConfig
from data.tokenizers.tokenizer import CharacterTokenizer
from model.inputs import Inputs
from train.generation.generate import make_generate
from train.generation.sampling import sample_tokens
from train.optimizer import Params
from train.state import shape_of

T = 8
TOKENIZER = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz")
MODEL = small_model(vocab_size=TOKENIZER.vocab_size, tied_embeddings=False)
GREEDY = SampleConfig(num_tokens=16, temperature=0)
PROMPTS = ("once", "a", "", "longerthanthewindow")


@functools.cache
def likeliest():
    """Returns the function from (params, ids) to the id that the model finds likeliest next."""

    @quick_jit
    def likeliest(params: Params, ids: np.ndarray):
        decoder = shape_of(MODEL).merge(params)
        row = jnp.asarray(ids, jnp.int32)[None]
        hidden = decoder(Inputs(row, jnp.arange(len(ids))[None], jnp.ones_like(row)))
        return jnp.argmax(decoder.logits(hidden)[0, -1, : MODEL.num_tokens])

    return likeliest


def continue_greedily(params: Params, prompt: str) -> list[int]:
    """Returns what follows a prompt: the growing text, or its last T tokens, is read anew."""
    ids = [TOKENIZER.separator, *TOKENIZER.encode(prompt).tolist()]
    start = len(ids)
    while len(ids) < start + GREEDY.num_tokens:
        ids.append(int(likeliest()(params, np.array(ids[-T:]))))
    return ids[start:]


@functools.cache
def greedy_texts() -> tuple[Params, list[list[int]]]:
    """Returns parameters, and what they say after each prompt: no separator, and not one letter."""
    params = random_params(MODEL, std=0.5)
    texts = [continue_greedily(params, prompt) for prompt in PROMPTS]
    assert all(TOKENIZER.separator not in text and len(set(text)) > 3 for text in texts)
    return params, texts


def test_greedy_text_is_that_of_a_plain_loop_also_beyond_the_window():
    params, texts = greedy_texts()
    generate = make_generate(MODEL, GREEDY, TOKENIZER, T)
    expected = [p + TOKENIZER.decode(text) for p, text in zip(PROMPTS, texts, strict=True)]
    assert generate(params, PROMPTS, 0) == expected


def test_a_text_ends_at_the_separator():
    params, texts = greedy_texts()
    # The head is changed so that the model says the separator where it said a certain letter.
    letter = texts[0][6]
    swap = np.arange(MODEL.num_padded_tokens)
    swap[[letter, TOKENIZER.separator]] = TOKENIZER.separator, letter
    params = {**params, "head": params["head"][:, swap]}
    expected = [
        prompt + TOKENIZER.decode(text[: text.index(letter)] if letter in text else text)
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]
    assert make_generate(MODEL, GREEDY, TOKENIZER, T)(params, PROMPTS, 0) == expected


@functools.cache
def generate_by_chance():
    sample = SampleConfig(num_tokens=16, temperature=1.0, top_k=None)
    return make_generate(MODEL, sample, TOKENIZER, T)


def test_the_seed_decides_the_text():
    params, _ = greedy_texts()
    once, again, other = (generate_by_chance()(params, PROMPTS, seed) for seed in (3, 3, 4))
    assert once == again
    assert once != other
    assert all(text.startswith(prompt) for text, prompt in zip(once, PROMPTS, strict=True))


def test_prompts_that_are_alike_get_texts_of_their_own():
    params, _ = greedy_texts()
    assert len(set(generate_by_chance()(params, ["a"] * 4, 0))) == 4


def test_the_text_of_a_prompt_does_not_depend_on_the_mesh():
    params, texts = greedy_texts()
    with jax.set_mesh(mesh_of(data=2, fsdp=2)):
        text = make_generate(MODEL, GREEDY, TOKENIZER, T)(params, PROMPTS[:1], 0)
    assert text == [PROMPTS[0] + TOKENIZER.decode(texts[0])]


def drawn(logits_V, sample: SampleConfig) -> np.ndarray:
    """Returns how often each token comes up in 4000 draws."""
    draws = sample_tokens(jnp.tile(jnp.asarray(logits_V), (4000, 1)), sample, jax.random.key(0))
    return np.bincount(draws, minlength=len(logits_V)) / 4000


def test_no_token_outside_of_the_k_likeliest_is_drawn():
    frequency_V = drawn([1.0, 3.0, 2.9, 0.0, 2.8, 2.7], SampleConfig(temperature=1.0, top_k=3))
    np.testing.assert_array_equal(frequency_V > 0, [False, True, True, False, True, False])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [3, 100, None])
def test_frequencies_are_the_softmax_of_logits_over_temperature(temperature, top_k):
    logits_V = np.array([1.0, 0.5, 0.0], np.float32)
    expected_V = np.exp(logits_V / temperature) / np.exp(logits_V / temperature).sum()
    frequency_V = drawn(logits_V, SampleConfig(temperature=temperature, top_k=top_k))
    # 4000 draws: five standard deviations of at most sqrt(0.25 / 4000) = 0.008.
    np.testing.assert_allclose(frequency_V, expected_V, rtol=0, atol=0.04)


def test_temperature_zero_draws_the_likeliest_whatever_k():
    logits_V = [0.0, 1.0, 0.999]
    for sample in (GREEDY, dataclasses.replace(GREEDY, top_k=None)):
        np.testing.assert_array_equal(drawn(logits_V, sample), [0, 1, 0])
