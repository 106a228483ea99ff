"""What each objective makes of rows: texts that can be put together again, at published rates."""

import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_families import GROUPS, KINDS, LETTERS, TOKENIZER, rows_of, spans_of
from small_model import refusal, small_run

from configs.data import DataConfig
from configs.errors import SettingsError
from data.batch import Batch
from data.batches import batch_digest
from data.objectives.batch_maker import BatchMaker, RowTokens, empty_row, stream_len
from data.objectives.pack_segments import document_spans
from data.objectives.span_corruption import UL2, Denoiser
from data.tokenizers.tokenizer import ByteTokenizer, CharacterTokenizer

SEP = TOKENIZER.separator
SPECIAL = TOKENIZER.special
SENTINELS = [SPECIAL[f"<extra_id_{i}>"] for i in range(100)]
CLS, END, MASK = (SPECIAL[name] for name in ("[CLS]", "[SEP]", "[MASK]"))
PREFIX, MIDDLE, SUFFIX = (SPECIAL[f"<|fim_{name}|>"] for name in ("prefix", "middle", "suffix"))
TWO_SIDED = {"span": 114, "ul2": 512, "prefix": 512}


def config_of(objective: str, **changes) -> DataConfig:
    settings = {"sequence_len": 512, "tokenizer": "characters", "special_tokens": GROUPS}
    return DataConfig(**{**settings, "objective": objective, **changes})


def make(config: DataConfig, spans: list[np.ndarray], key: int = 0, others=()) -> Batch[np.ndarray]:
    return BatchMaker(config, TOKENIZER).batch([RowTokens(spans, (0, key), others)])


def long_text(rng: np.random.Generator, length: int) -> np.ndarray:
    """Returns a row of one document, with the token after it."""
    return np.concatenate(([SEP], rng.integers(0, len(LETTERS), length), [SEP])).astype(np.int32)


def segments(batch: Batch[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns what each segment of the first row has in each array, and of its encoded text."""
    found = []
    for number in range(1, int(batch.segments_BT.max(initial=0)) + 1):
        here = batch.segments_BT[0] == number
        arrays = batch._replace(encoder=None)._asdict()
        parts = {name: array[0][here] for name, array in arrays.items() if array is not None}
        if batch.encoder is not None:
            encoder = batch.encoder
            parts["encoded"] = encoder.tokens_BS[0][encoder.segments_BS[0] == number]
        found.append(parts)
    return found


def pieces(spans: list[np.ndarray]) -> list[list[int]]:
    """Returns the texts of a row, each with its separator where it begins there."""
    return [[SEP] * piece.begins + piece.content.tolist() for piece in document_spans(spans, SEP)]


def put_together(given: list[int], found: list[int]) -> list[int]:
    """Puts the spans that targets say into the places that the input has for them."""
    spans: dict[int, list[int]] = {}
    for token in found:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert all(spans.values()), "a span without a token"
    assert list(spans) == SENTINELS[: len(spans)] == [t for t in given if t in SENTINELS]
    return [t for token in given for t in spans.get(token, [token])]


@pytest.mark.parametrize("objective", ["span", "ul2"])
@pytest.mark.parametrize("two_sided", [True, False])
def test_spans_put_back_in_their_places_are_the_text(rng, objective, two_sided):
    target_len = TWO_SIDED[objective] if two_sided else None
    config = config_of(objective, target_len=target_len)
    num_seen = 0
    for key in range(60):
        length = stream_len(config)
        spans = [spans_of(rng, length) if key % 2 else long_text(rng, length - 1)]
        texts = pieces(spans)
        for segment in segments(make(config, spans, key)):
            if two_sided:
                assert segment["tokens_BT"][0] == SEP
                assert segment["targets_BT"][-1] == SEP
                np.testing.assert_array_equal(segment["tokens_BT"][1:], segment["targets_BT"][:-1])
                given, found = segment["encoded"], segment["targets_BT"][:-1]
            else:
                cut = int(segment["prefix_BT"].sum())
                sequence = [*segment["tokens_BT"], segment["targets_BT"][-1]]
                given, found = sequence[:cut], sequence[cut:-1]
                counted = segment["targets_BT"][segment["weights_BT"] > 0]
                assert counted.tolist() == sequence[cut:]
            if len(found) and found[0] in SENTINELS:
                assert put_together(list(given), list(found)) in texts
            else:
                assert [*given, *found] in texts
            num_seen += 1
    assert num_seen > 60


def test_a_t5_row_has_the_published_lengths(rng):
    config = config_of("span", target_len=114)
    assert stream_len(config) == 569  # 568 in the code of T5, whose input has an end of its own
    batch = make(config, [long_text(rng, 568)])
    assert batch.encoder is not None
    assert (batch.encoder.segments_BS > 0).sum() == 512
    assert (batch.segments_BT > 0).sum() == 114


def test_spans_have_the_published_rates_over_a_million_tokens(rng):
    config = config_of("span", target_len=114)
    num_tokens = num_hidden = num_spans = 0
    lengths: Counter[int] = Counter()
    for key in range(1800):
        batch = make(config, [long_text(rng, 568)], key)
        found = batch.targets_BT[0][batch.weights_BT[0] > 0][:-1]
        is_sentinel = np.isin(found, SENTINELS)
        lengths.update(np.diff(np.flatnonzero(is_sentinel), append=len(found)) - 1)
        num_tokens, num_spans = num_tokens + 568, num_spans + int(is_sentinel.sum())
        num_hidden += int((~is_sentinel).sum())
    assert num_tokens > 10**6
    assert num_hidden / num_tokens == pytest.approx(0.15, abs=0.001)
    assert num_hidden / num_spans == pytest.approx(3, abs=0.05)
    # Every way of cutting 85 tokens into 28 spans is as likely: 1 has the share 27 / 84.
    assert lengths[1] / num_spans == pytest.approx(27 / 84, abs=0.01)


@pytest.mark.parametrize("denoiser", UL2[:-1], ids=str)
def test_ul2_hides_as_much_as_it_says_in_spans_of_that_length(rng, denoiser):
    num_hidden, num_spans = denoiser.counts(500)
    assert num_hidden / 500 == denoiser.density
    assert num_hidden / num_spans == pytest.approx(denoiser.mean_len, rel=0.2)


def test_ul2_takes_its_denoisers_equally_often(rng):
    config = config_of("ul2", target_len=512)
    kinds: Counter[tuple[bool, int]] = Counter()
    for key in range(3500):
        (segment,) = segments(make(config, [long_text(rng, 300)], key))
        found = segment["targets_BT"]
        is_sentinel = np.isin(found, SENTINELS)
        kinds[bool(is_sentinel.any()), int(is_sentinel.sum())] += 1
    wanted = {(True, Denoiser(d, m).counts(300)[1]) for d, m in UL2[:-1]} | {(False, 0)}
    assert {*kinds} == wanted
    assert all(abs(num - 500) < 5 * 500**0.5 for num in kinds.values())


def test_masked_tokens_have_the_published_rates_over_a_million_tokens(rng):
    config = config_of("masked")
    fates: Counter[str] = Counter()
    num_tokens = 0
    for key in range(2000):
        (segment,) = segments(make(config, [long_text(rng, 511)], key))
        tokens, targets = segment["tokens_BT"], segment["targets_BT"]
        chosen = segment["weights_BT"] > 0
        assert tokens[0] == CLS
        assert chosen.sum() == round(0.15 * 511)
        assert not chosen[0]
        np.testing.assert_array_equal(tokens[~chosen], targets[~chosen])
        hidden, kept = tokens[chosen] == MASK, tokens[chosen] == targets[chosen]
        fates["hidden"] += int(hidden.sum())
        fates["kept"] += int(kept.sum())
        fates["wrong"] += int((~hidden & ~kept).sum())
        assert np.all(tokens[chosen & (tokens != MASK)] < len(LETTERS))
        num_tokens += 511
    assert num_tokens > 10**6
    num = sum(fates.values())
    assert num / num_tokens == pytest.approx(0.15, abs=0.001)
    by_chance = 0.1 / len(LETTERS)  # of the wrong ones are the right one
    assert fates["hidden"] / num == pytest.approx(0.8, abs=0.004)
    assert fates["wrong"] / num == pytest.approx(0.1 - by_chance, abs=0.004)
    assert fates["kept"] / num == pytest.approx(0.1 + by_chance, abs=0.004)


def test_whole_words_are_hidden_whole(rng):
    tokenizer = ByteTokenizer({"[CLS]": 257, "[SEP]": 258, "[MASK]": 259, "[PAD]": 260})
    text = np.frombuffer(b" to be or not to be that is the question" * 12, np.uint8)
    config = config_of("masked", tokenizer="bytes", whole_words=True, special_tokens=("masked",))
    maker = BatchMaker(config, tokenizer)
    hidden = 0
    for key in range(20):
        batch = maker.batch([RowTokens([np.append(text, 256).astype(np.int32)], (0, key))])
        chosen = batch.weights_BT[0][: len(text)] > 0
        words = np.cumsum(text == ord(" "))
        for word in np.unique(words):
            assert len({*chosen[words == word].tolist()}) == 1
        hidden += int(chosen.sum())
    assert hidden / (20 * len(text)) == pytest.approx(0.15, abs=0.01)


def test_pairs_are_two_texts_of_which_half_follow(rng):
    config = config_of("masked_pairs", mask_rate=0.01)
    answers: Counter[int] = Counter()
    for key in range(2000):
        text, other = long_text(rng, 400), long_text(rng, 400)
        (segment,) = segments(make(config, [text], key, others=[other]))
        targets, types = segment["targets_BT"], segment["types_BT"]
        (answer,) = {*segment["next_BT"].tolist()} - {0}
        assert segment["next_BT"][0] == answer
        first = targets[1 : int((types == 0).sum()) - 1]
        second = targets[types == 1][:-1]
        assert (targets[0], targets[len(first) + 1], targets[-1]) == (CLS, END, END)
        content = text[1:-1]
        np.testing.assert_array_equal(first, content[: len(first)])
        follows = np.array_equal(second, content[len(first) :])
        assert follows == (answer == 1)
        if not follows:
            at = other.astype("<i4").tobytes().find(second.astype("<i4").tobytes())
            assert at >= 0
        answers[answer] += 1
    assert abs(answers[1] - 1000) < 5 * 500**0.5


def test_infilled_texts_are_the_text_in_another_order(rng):
    config = config_of("infill")
    kinds: Counter[str] = Counter()
    for key in range(400):
        text = long_text(rng, 300)
        (segment,) = segments(make(config, [text], key))
        sequence = [*segment["tokens_BT"].tolist(), int(segment["targets_BT"][-1])]
        np.testing.assert_array_equal(segment["tokens_BT"][1:], segment["targets_BT"][:-1])
        assert segment["weights_BT"].all()
        if MIDDLE not in sequence:
            kinds["plain"] += 1
            assert sequence == text.tolist()
            continue
        prefix, suffix, middle = (sequence.index(mark) for mark in (PREFIX, SUFFIX, MIDDLE))
        if suffix == prefix + 1:
            kinds["suffix first"] += 1
            found = sequence[middle + 1 : -1] + sequence[suffix + 1 : middle]
        else:
            kinds["prefix first"] += 1
            found = sequence[prefix + 1 : suffix] + sequence[middle + 1 : -1]
            found += sequence[suffix + 1 : middle]
        assert [SEP, *found, SEP] == text.tolist()
    assert kinds["plain"] / 400 == pytest.approx(0.5, abs=0.1)
    assert kinds["suffix first"] / 400 == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_prefix_and_what_is_found_are_the_text(rng, two_sided):
    config = config_of("prefix", target_len=512 if two_sided else None)
    for key in range(50):
        spans = [spans_of(rng, 512)]
        texts = [text for text in pieces(spans) if len(text) > 1]
        found = segments(make(config, spans, key))
        assert len(found) == len(texts)
        for segment, text in zip(found, texts, strict=True):
            if two_sided:
                assert [*segment["encoded"], *segment["targets_BT"][:-1]] == text
                continue
            cut = int(segment["prefix_BT"].sum())
            assert segment["tokens_BT"].tolist() == text
            assert segment["prefix_BT"][:cut].all()
            np.testing.assert_array_equal(
                segment["weights_BT"] > 0, np.arange(len(text)) >= cut - 1
            )


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["infill", "masked", "masked_pairs", "prefix", "span", "ul2"]),
    two_sided=st.booleans(),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    key=st.integers(0, 2**32 - 1),
)
def test_whatever_the_documents_a_row_fits(name, two_sided, lengths, key):
    target_len = 64 if two_sided and name in TWO_SIDED else None
    config = config_of(name, sequence_len=64, target_len=target_len)
    ids = [t for n in lengths for t in (SEP, *([1] * n))]
    spans = [np.array(ids[: stream_len(config) + 1], np.int32)]
    if len(spans[0]) > 1:
        batch = make(config, spans, key, others=spans)
        assert batch.segments_BT.shape == (1, 64)
        counted = batch.weights_BT > 0
        assert np.all(batch.segments_BT[counted] > 0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_row_depends_on_its_key_and_nothing_else(rng, kind):
    config = kind.run()
    rows = rows_of(rng, config, 8)
    maker = BatchMaker(config.data, TOKENIZER)
    whole = maker.batch(rows)
    for picked in ([3], [7, 0, 5]):
        part = maker.batch([rows[i] for i in picked])
        assert batch_digest(part) == batch_digest(whole.map(lambda array, i=picked: array[i]))
    empty = empty_row(config.data)
    assert batch_digest(maker.batch([RowTokens()])) == batch_digest(empty)
    assert empty.weights_BT.sum() == 0


def test_the_objectives_of_a_mixture_have_their_shares(rng):
    names = ("causal=1", "span=2", "infill=1")
    config = config_of("mixed", objective_mixture=names, infill_rate=1.0)
    kinds: Counter[str] = Counter()
    for key in range(2000):
        batch = make(config, [long_text(rng, 300)], key)
        seen = {*batch.tokens_BT[0].tolist()}
        kinds["span" if SENTINELS[0] in seen else "infill" if MIDDLE in seen else "causal"] += 1
    assert kinds["span"] / 2000 == pytest.approx(0.5, abs=0.05)
    assert kinds["infill"] / 2000 == pytest.approx(0.25, abs=0.05)


GOLDEN = {
    "prefix": "417918fe879b3325",
    "infill": "27e81639f45d1d04",
    "masked": "d9672a68e96681d3",
    "masked_pairs": "9a4c4951de44b159",
    "span": "77a672abdf1d4d36",
    "ul2": "ceb596468eaf70fa",
}
"""Digests of the batches of 50 rows: an interface, as the order of data is."""


@pytest.mark.parametrize("name", GOLDEN)
def test_the_batches_of_an_objective_stay_what_they_are(name):
    rng = np.random.default_rng(0)
    run = dataclasses.replace(small_run(), data=config_of("causal", sequence_len=64))
    config = config_of(name, sequence_len=64)
    rows = rows_of(rng, dataclasses.replace(run, data=run.data), 50)
    rows = [row._replace(spans=[row.spans[0][: stream_len(config)]]) for row in rows]
    batch = BatchMaker(config, TOKENIZER).batch(rows)
    assert hashlib.sha256(batch_digest(batch).encode()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "mixed"}, ("data.objective_mixture=None", "mixed")),
        ({"objective_mixture": ("span=1",)}, ("data.objective_mixture=span=1", "causal")),
        ({"objective": "mixed", "objective_mixture": ("spam=1",)}, ("spam=1", "NAME=WEIGHT")),
        (
            {"objective": "mixed", "objective_mixture": ("masked=1", "span=1")},
            ("masked", "decoders"),
        ),
        ({"objective": "masked", "target_len": 64}, ("data.target_len=64", "masked")),
        ({"mask_rate": 1.0}, ("data.mask_rate=1.0", "below 1")),
        ({"span_len": 0.5}, ("data.span_len=0.5", "at least 1")),
    ],
    ids=str,
)
def test_objectives_that_cannot_be_are_refused(settings, words):
    message = refusal(DataConfig, sequence_len=64, **settings)
    for word in words:
        assert word in message


def test_a_tokenizer_without_the_tokens_that_are_needed_is_refused():
    message = refusal(BatchMaker, config_of("masked", special_tokens=()), CharacterTokenizer("a"))
    assert "data.special_tokens=None" in message
    assert "masked" in message


def test_more_spans_than_there_are_tokens_for_are_refused():
    with pytest.raises(SettingsError, match=r"data\.span_len=3\.0") as error:
        stream_len(config_of("span", sequence_len=4096, target_len=1024))
    assert "data.sequence_len=4096" in str(error.value)
