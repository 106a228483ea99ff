"""Step "decontaminate": drops documents that share an n-gram with an evaluation text."""

import hashlib
from collections.abc import Iterable

import numpy as np

from configs.data import PrepareConfig
from data.prepare.cleaning.cleaning_step import CleaningStep, Dropped
from data.prepare.cleaning.word_split import split_words

MIN_WORDS = 8
"""Words of the shortest evaluation text to search for; the least n of GPT-3."""

# Any odd number whose bits look random; 2^64 / golden ratio (Knuth, TAOCP 3, 6.4).
_FACTOR = 0x9E3779B97F4A7C15


def make_decontaminate(config: PrepareConfig, overlap_texts: Iterable[str]) -> CleaningStep:
    """Returns a step that drops a text that holds an n-gram of an evaluation text.

    Words are those of `split_words`, in lower case; punctuation and spaces do not count. n is
    data.decontaminate_ngram_len. An evaluation text of fewer words is matched as a whole; one of
    fewer than MIN_WORDS, and than n, is not, as it would drop any text with these few words.

    In memory are 64-bit hashes of the n-grams, 8 bytes per word, and each distinct word once. A
    text of a million n-grams matches one of a billion by chance with a probability of 5e-5.

    Source: Brown et al. 2020, GPT-3, arXiv:2005.14165, appendix C; there the match is removed
    with 200 characters on either side, here the whole document is dropped.
    """
    number: dict[str, np.uint64] = {}
    by_length: dict[int, list[np.ndarray]] = {}
    for text in overlap_texts:
        found = split_words(text.lower())
        for word in found:
            if word not in number:
                number[word] = _number_of(word)
        n = min(len(found), config.decontaminate_ngram_len)
        if n >= min(MIN_WORDS, config.decontaminate_ngram_len):
            values = np.array([number[word] for word in found])
            by_length.setdefault(n, []).append(_hash_ngrams(values, n))
    known = {n: np.unique(np.concatenate(hashes)) for n, hashes in by_length.items()}

    def check_overlap(text: str) -> str | Dropped:
        found = split_words(text.lower())
        unknown = np.uint64(0)
        values = np.fromiter((number.get(word, unknown) for word in found), np.uint64, len(found))
        for n, hashes in known.items():
            if _has_any(values, n, hashes):
                whole = n < config.decontaminate_ngram_len
                return Dropped(f"{'whole' if whole else f'{n}-gram of an'} evaluation text")
        return text

    return check_overlap


def _number_of(word: str) -> np.uint64:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.frombuffer(digest, "<u8")[0]


def _hash_ngrams(values: np.ndarray, n: int) -> np.ndarray:
    """Returns a 64-bit hash of each run of n values: sum of value_k * factor^k, modulo 2^64."""
    hashes = np.zeros(max(len(values) - n + 1, 0), np.uint64)
    for k in range(n):
        hashes = hashes * np.uint64(_FACTOR) + values[k : k + len(hashes)]
    return hashes


def _has_any(values: np.ndarray, n: int, hashes: np.ndarray) -> bool:
    num_unknown = np.cumsum(np.concatenate(([0], values == 0)))
    is_known = num_unknown[n:] == num_unknown[:-n]
    if not is_known.any():
        return False
    candidates = _hash_ngrams(values, n)[is_known]
    index = np.searchsorted(hashes, candidates)
    return bool((hashes[np.minimum(index, len(hashes) - 1)] == candidates).any())
