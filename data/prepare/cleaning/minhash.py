"""A short signature of a text, from which the similarity of two texts is estimated.

One-permutation hashing: each 5-gram of characters is hashed once; some bits of the hash choose one
of 128 bins, and each bin keeps the minimum of the other bits. Two texts agree in a bin with a
probability of their Jaccard similarity; the standard error of the estimate is at most 0.045. It
costs one hash per character instead of the 128 of 128 permutations.

Source: Broder 1997, On the resemblance and containment of documents; Li, Owen and Zhang 2012, One
permutation hashing, arXiv:1208.1259; bins that stay empty are filled after Shrivastava 2017,
Optimal densification for fast and accurate minwise hashing, arXiv:1703.04664.
"""

import functools
import unicodedata

import numpy as np

NUM_BINS = 128
NGRAM_LEN = 5
"""Characters in an n-gram; not words, so that a script without spaces is no special case."""

_BIN_BITS = NUM_BINS.bit_length() - 1
_CHUNK = 1 << 16  # characters hashed at once: the arrays stay in the cache of a core
_EMPTY = np.uint32(0xFFFFFFFF)


def comparable(text: str) -> str:
    """Returns the text normalised for comparison: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def minhash(text: str) -> np.ndarray:
    """Returns the signature of a comparable text, uint32 [NUM_BINS].

    A text shorter than an n-gram has itself as its only n-gram. The same on every machine.
    """
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    length = min(NGRAM_LEN, max(len(characters), 1))
    if not len(characters):
        characters = np.zeros(1, np.uint64)
    least = np.full(NUM_BINS, _EMPTY)
    for start in range(0, len(characters) - length + 1, _CHUNK):
        hashes = _hash_ngrams(characters[start : start + _CHUNK + length - 1], length)
        bins = (hashes >> np.uint64(64 - _BIN_BITS)).astype(np.intp)
        np.minimum.at(least, bins, hashes.astype(np.uint32) & ~np.uint32(1))
    empty = np.flatnonzero(least == _EMPTY)
    if len(empty):
        donors = _donors()[empty]
        first = np.argmax(least[donors] != _EMPTY, axis=1)
        least[empty] = least[donors[np.arange(len(empty)), first]]
    return least


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the estimated Jaccard similarity of signatures [..., NUM_BINS], float [...]."""
    return np.mean(one == other, axis=-1)


def mix(values: np.ndarray) -> np.ndarray:
    """Returns uint64 whose every bit depends on every bit of the value.

    Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 16.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_ngrams(characters: np.ndarray, length: int) -> np.ndarray:
    num = len(characters) - length + 1
    packed = np.zeros(num, np.uint64)
    for k in range(length):
        packed = packed * np.uint64(0x9E3779B97F4A7C15) + characters[k : k + num]
    return mix(packed)


@functools.cache
def _donors() -> np.ndarray:
    """Returns for each bin all bins in the order in which they fill it if empty [bin, donor].

    The order is random and fixed. Shrivastava 2017 samples with replacement, which may try an empty
    bin twice.
    """
    bins = np.arange(NUM_BINS, dtype=np.uint64)
    return np.argsort(mix(bins[:, None] * np.uint64(NUM_BINS) + bins + np.uint64(1)), axis=1)
