"""Documents that repeat an earlier one: exact, near, in any script, however they are stored."""

import bisect
import random

import numpy as np
import pytest

from configs.data import PrepareConfig
from data.prepare.cleaning import duplicates
from data.prepare.cleaning.duplicates import (
    KEPT,
    bands_and_rows,
    find_duplicates,
    signature_dtype,
    signature_of,
)
from data.prepare.cleaning.minhash import NUM_BINS, comparable, minhash, similarity

EXACT = PrepareConfig(clean=("exact_duplicates",))
NEAR = PrepareConfig(clean=("near_duplicates",))
BOTH = PrepareConfig(clean=("exact_duplicates", "near_duplicates"))
LETTERS = random.Random(5)
WORDS = ["".join(LETTERS.choices("aeiourstlnmkpd", k=3 + number % 6)) for number in range(3000)]
HAN = [chr(letter) for letter in range(0x4E00, 0x5600)]


def found(folder, texts: list[str], config: PrepareConfig, sizes=None) -> list[int]:
    """Returns what find_duplicates says of texts that lie in files of so many documents each."""
    signatures = np.array([signature_of(text, config) for text in texts], signature_dtype(config))
    return found_of(folder, signatures, config, sizes or [len(texts)])


def found_of(folder, signatures, config, sizes) -> list[int]:
    assert sum(sizes) == len(signatures)
    files = [folder / f"task_{number}.npy" for number in range(len(sizes))]
    edges = np.cumsum([0, *sizes])
    for file, start, end in zip(files, edges[:-1], edges[1:], strict=True):
        np.save(file, signatures[start:end])
    repeats = find_duplicates(files, config, folder / "work")
    assert [len(of_file) for of_file in repeats] == list(sizes)
    return np.concatenate([[], *repeats]).astype(int).tolist()


def ngrams(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(len(text) - 4)}


def jaccard(one: str, other: str) -> float:
    a, b = ngrams(one), ngrams(other)
    return len(a & b) / len(a | b)


def edited(units: list[str], joint: str, target: float, source: random.Random) -> str:
    """Replaces units of a text, as few as bring its Jaccard similarity down to the target."""
    others = source.choices(HAN if joint == "" else WORDS, k=len(units))
    places = source.sample(range(len(units)), len(units))

    def replaced(count: int) -> str:
        changed = units.copy()
        for place in places[:count]:
            changed[place] = others[place]
        return joint.join(changed)

    def is_below(count: int) -> bool:
        return jaccard(joint.join(units), replaced(count)) <= target

    return replaced(bisect.bisect_left(range(len(units)), True, key=is_below))


def planted(units: list[str], joint: str, num_units: int, targets, each: int, seed: int):
    """Returns (base, edited) pairs of texts, so many for each target of similarity."""
    source = random.Random(seed)
    bases = [source.choices(units, k=num_units) for _ in range(each * len(targets))]
    copies = [
        edited(base, joint, targets[i % len(targets)], source) for i, base in enumerate(bases)
    ]
    return [(joint.join(base), copy) for base, copy in zip(bases, copies, strict=True)]


@pytest.mark.parametrize(("units", "joint", "num_units"), [(WORDS, " ", 200), (HAN, "", 600)])
def test_near_duplicates_are_found_and_others_are_kept(tmp_path, units, joint, num_units):
    targets = (0.9, 0.85, 0.75, 0.7, 0.5)
    pairs = planted(units, joint, num_units, targets, 60, seed=0)
    texts = [base for base, _ in pairs] + [copy for _, copy in pairs]
    repeats = found(tmp_path, texts, NEAR)
    assert repeats[: len(pairs)] == [KEPT] * len(pairs)
    marked = {target: [] for target in targets}
    for number, repeat in enumerate(repeats[len(pairs) :]):
        assert repeat in (KEPT, number)
        marked[targets[number % len(targets)]].append(repeat != KEPT)
    shares = {target: float(np.mean(marks)) for target, marks in marked.items()}
    # Measured on 160 pairs of each similarity (English and Chinese words): of 0.95, 100 and 100 %
    # are found; of 0.9, 99 and 100 %; of 0.85, 93 and 91 %; of 0.75, 6 and 6 %; of 0.7, 0.6 and
    # 0.6 %; of 0.6 and 0.5, none. Of those found with as many pairs of each, 86 and 88 % are above
    # 0.8, the others just below; no pair of unrelated texts is found.
    assert shares[0.9] >= 0.98
    assert shares[0.85] >= 0.85
    assert shares[0.75] <= 0.25
    assert shares[0.7] <= 0.05
    assert shares[0.5] == 0


@pytest.mark.parametrize("num_units", [8, 40, 200, 600])
def test_the_estimate_of_similarity_has_no_bias_at_any_length(num_units):
    pairs = planted(WORDS, " ", num_units, (0.9, 0.6, 0.3), 20, seed=1)
    errors = [
        similarity(minhash(base), minhash(copy)) - jaccard(base, copy) for base, copy in pairs
    ]
    # The standard error of one is at most 0.045 where n-grams are many and up to 0.1 where bins
    # outnumber them; of the mean of 60 it is 0.006 and 0.013. Three of these.
    assert abs(np.mean(errors)) < (0.018 if num_units >= 40 else 0.039)
    assert np.std(errors) < (0.05 if num_units >= 40 else 0.11)


def test_a_signature_is_the_same_on_every_machine():
    # python -c "from data.prepare.cleaning.minhash import minhash; print(minhash('...')[:4])"
    literal = {
        "": [0, 0, 0, 0],
        "abc": [2599002038, 2599002038, 2599002038, 2599002038],
        "The quick brown fox": [630855928, 4036464126, 126624764, 126624764],
        "敏捷的棕色狐狸": [301630818, 436521794, 308658564, 436521794],
    }
    assert {text: minhash(text)[:4].tolist() for text in literal} == literal


def test_a_signature_is_that_of_the_set_of_ngrams_however_long_the_text():
    short = minhash("a" * 9 + "bc" + "a" * 9)
    for length in range(65_530, 65_540):  # about where the second chunk begins
        np.testing.assert_array_equal(minhash("a" * length + "bc" + "a" * 9), short)


def test_exact_duplicates_differ_in_case_white_space_and_compatible_forms_at_most(tmp_path):
    texts = [
        "The Moon pulls on the ocean.",
        "The Moon pulls on the ocean!",
        "  the moon\n\npulls ON\tthe\u00a0ocean. ",
        "The moon pulls on the \uff4f\uff43\uff45\uff41\uff4e\uff0e",
        "Moon the pulls on the ocean.",
        "土星　有 很多卫星",
        "土星 有\n很多卫星",
        "",
        " \n",
    ]
    assert comparable(texts[2]) == "the moon pulls on the ocean."
    expected = [KEPT, KEPT, 0, 0, KEPT, KEPT, 5, KEPT, 7]
    assert found(tmp_path, texts, EXACT) == expected
    assert found(tmp_path, texts, EXACT, [2, 0, 3, 4]) == expected


def test_exact_duplicates_agree_in_all_128_bits(tmp_path):
    signatures = np.zeros(4, signature_dtype(EXACT))
    signatures["exact"] = [[7, 1], [7, 2], [8, 2], [7, 2]]
    assert found_of(tmp_path, signatures, EXACT, [4]) == [KEPT, KEPT, KEPT, 1]


def test_only_the_steps_that_are_asked_for_are_taken(tmp_path):
    base, copy = planted(WORDS, " ", 300, (0.95,), 1, seed=3)[0]
    texts = [base, base.upper(), copy]
    assert found(tmp_path, texts, EXACT) == [KEPT, 0, KEPT]
    assert found(tmp_path, texts, NEAR) == [KEPT, 0, 0]
    assert found(tmp_path, texts, BOTH) == [KEPT, 0, 0]
    assert signature_dtype(EXACT).itemsize == 16
    assert signature_dtype(BOTH).itemsize == 16 + 4 * NUM_BINS


def test_an_earlier_document_counts_though_it_is_dropped_itself(tmp_path, rng):
    chain = np.repeat(clustered(rng, 1, NEAR), 5)
    for number in range(1, 5):  # 108 of 128 bins are those of the one before, 88 of two before
        chain["near"][number:, 20 * number : 20 * (number + 1)] += np.uint32(1)
    assert found_of(tmp_path, chain, NEAR, [3, 2]) == [KEPT, 0, 1, 2, 3]


def clustered(rng: np.random.Generator, num: int, config: PrepareConfig) -> np.ndarray:
    """Signatures of which many are like an earlier one, more or less than the threshold asks."""
    signatures = np.zeros(num, signature_dtype(config))
    signatures["exact"] = rng.integers(0, 2**64, (num, 2), np.uint64)
    signatures["near"] = rng.integers(0, 2**32, (num, NUM_BINS), np.uint32)
    for number in range(1, num):
        if rng.random() < 0.7:
            earlier = rng.integers(number)
            same = rng.random(NUM_BINS) < rng.uniform(0.6, 1)
            signatures["near"][number, same] = signatures["near"][earlier, same]
        if rng.random() < 0.1:
            signatures[number] = signatures[rng.integers(number)]
    return signatures


def by_definition(signatures: np.ndarray, config: PrepareConfig) -> list[int]:
    """The rule in its own words, document by document."""
    num_bands, num_rows = bands_and_rows(config.duplicate_similarity)
    repeats = [KEPT] * len(signatures)
    for number, signature in enumerate(signatures):
        same = (signatures["exact"][:number] == signature["exact"]).all(axis=1)
        equal = signatures["near"][:number] == signature["near"]
        bands = equal[:, : num_bands * num_rows].reshape(number, num_bands, num_rows)
        near = bands.all(axis=2).any(axis=1) & (equal.mean(axis=1) >= config.duplicate_similarity)
        if "exact_duplicates" in config.clean and same.any():
            repeats[number] = int(np.argmax(same))
        elif "near_duplicates" in config.clean and near.any():
            repeats[number] = int(np.argmax(near))
    return repeats


@pytest.mark.parametrize("config", [NEAR, BOTH], ids=["near", "both"])
def test_duplicates_are_those_of_the_definition_however_they_are_stored(
    tmp_path, monkeypatch, rng, config
):
    signatures = clustered(rng, 600, config)
    expected = by_definition(signatures, config)
    assert 150 < sum(repeat != KEPT for repeat in expected) < 450
    for sizes in ([600], [0, 599, 0, 1], [100] * 6, [2] * 300):
        assert found_of(tmp_path, signatures, config, sizes) == expected
    monkeypatch.setattr(duplicates, "BUCKET_ENTRIES", 97)  # a hundred buckets in place of one
    for sizes in ([600], [100] * 6):
        assert found_of(tmp_path, signatures, config, sizes) == expected


def test_copies_of_a_template_are_compared_with_its_first_documents(tmp_path, rng):
    signatures = clustered(rng, 1, NEAR)
    signatures = np.repeat(signatures, 500)
    signatures["near"][:, -10:] = rng.integers(0, 2**32, (500, 10), np.uint32)
    assert found_of(tmp_path, signatures, NEAR, [500]) == [KEPT] + [0] * 499


def test_what_a_killed_pass_left_is_not_read(tmp_path, rng):
    signatures = clustered(rng, 50, BOTH)
    expected = found_of(tmp_path, signatures, BOTH, [50])
    for name in ("exact", "near"):
        (tmp_path / "work" / name).mkdir()
        (tmp_path / "work" / name / "00000000").write_bytes(rng.bytes(24 * 16))
    assert found_of(tmp_path, signatures, BOTH, [50]) == expected
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["earlier.npy"]


def test_there_may_be_no_document(tmp_path):
    assert found(tmp_path, [], BOTH, [0, 0]) == []
    assert find_duplicates([], BOTH, tmp_path / "work") == []


def test_bands_are_as_long_as_nine_in_ten_pairs_at_the_threshold_allow():
    literal = {0.0: (128, 1), 0.5: (42, 3), 0.7: (21, 6), 0.8: (16, 8), 0.9: (9, 14)}
    assert {threshold: bands_and_rows(threshold) for threshold in literal} == literal
    for threshold in np.linspace(0.1, 0.99, 90):
        bands, rows = bands_and_rows(threshold)
        assert bands * rows <= NUM_BINS
        assert 1 - (1 - threshold**rows) ** bands >= 0.9
