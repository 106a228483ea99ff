"""Text to token ids and back. Every tokenizer has one extra id that separates documents."""

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from configs.require import require
from data.prepare.text.streams import utf8
from data.tokenizers.bpe_files import from_tiktoken, from_vocab
from data.tokenizers.special_tokens import NO_SPECIAL_TOKENS, special_token_ids
from data.tokenizers.subword_backends import load_subword_model
from data.tokenizers.subword_tokenizer import SubwordTokenizer, open_subword_tokenizer


class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    kind: str
    """bytes, characters, sentencepiece or huggingface."""
    vocab_size: int
    """Ids are below it, including the separator and special tokens."""
    separator: int
    """Id that begins every document and so ends the one before; never part of encoded text."""
    special: Mapping[str, int]
    """Ids of special tokens by canonical name, such as [MASK]; never part of encoded text.

    "separator" is among them if data.separator_token is not the usual one.
    """

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32, without separator; the array may be read-only.

        The spelling of a special token is encoded as text.

        Raises:
            SettingsError: the tokenizer cannot encode the text.
        """
        ...

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool = False) -> list[np.ndarray]:
        """Returns what `encode` returns for each text, perhaps faster.

        Args:
            mid_document: the texts continue documents, so no space is prepended.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; skips the separator, special tokens and ids out of range."""
        ...

    def word_starts(self) -> np.ndarray:
        """Returns for each id, [V], whether it begins a word (the space before belongs to it)."""
        ...

    def content(self) -> bytes:
        """Returns the bytes from which `load_tokenizer` makes it, given kind and special."""
        ...


class ByteTokenizer:
    """The 256 byte values, of text in UTF-8."""

    kind = "bytes"
    separator = 256

    def __init__(self, special: Mapping[str, int] = NO_SPECIAL_TOKENS):
        self.special = special
        self.vocab_size = 257 + len(special)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool = False) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def word_starts(self) -> np.ndarray:
        return np.isin(np.arange(self.vocab_size), [ord(c) for c in string.whitespace])

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def content(self) -> bytes:
        return b"bytes"


class CharacterTokenizer:
    """The characters of a corpus, in order of code point."""

    kind = "characters"

    def __init__(self, alphabet: str, special: Mapping[str, int] = NO_SPECIAL_TOKENS):
        self.alphabet = alphabet
        self.special = special
        self.separator = len(alphabet)
        self.vocab_size = len(alphabet) + 1 + len(special)
        points = np.array([ord(c) for c in alphabet], np.int64)
        assert (np.diff(points) > 0).all(), "the alphabet must be sorted, without repetition"
        self._points = points

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        ids = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        unknown = self._points[ids] != points
        if unknown.any():
            character = chr(points[unknown][0])
            raise SettingsError(
                f"the character {character!r} is not among the {len(self.alphabet)} that the "
                "tokenizer has: remove it, or train with --data.tokenizer bytes"
            )
        return ids.astype(np.int32)

    def encode_batch(self, texts: Sequence[str], *, mid_document: bool = False) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def word_starts(self) -> np.ndarray:
        spaces = [i for i, character in enumerate(self.alphabet) if character.isspace()]
        return np.isin(np.arange(self.vocab_size), spaces)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.alphabet[i] for i in ids if i < self.separator)

    def content(self) -> bytes:
        return json.dumps({"alphabet": self.alphabet}).encode()


_FILES = {
    ".model": ("sentencepiece", "SentencePiece model"),
    ".json": ("huggingface", "Hugging Face tokenizer.json"),
    ".tiktoken": ("huggingface", "tiktoken file of ranks"),
    "merges.txt": ("huggingface", "vocab.json beside its merges.txt"),
    "vocab.json": ("huggingface", "vocab.json beside its merges.txt"),
}
_WITHOUT_PATTERN = (".tiktoken", "merges.txt", "vocab.json")


def open_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """Returns the tokenizer of the settings, None if it has to be trained first."""
    path = Path(config.tokenizer).expanduser()
    form = next((end for end in reversed(_FILES) if path.name.endswith(end)), None)
    require(
        config.split_pattern is None or form in _WITHOUT_PATTERN,
        f"data.split_pattern={config.split_pattern} must not be given with "
        f"data.tokenizer={config.tokenizer}, which has its own way to split text; leave it out",
    )
    if form is None:
        require(
            config.separator_token is None,
            f"data.separator_token={config.separator_token} must not be given with "
            f"data.tokenizer={config.tokenizer}, which has its own separator; leave it out",
        )
        require(
            config.tokenizer in ("bytes", "characters", "sentencepiece"),
            f"data.tokenizer={config.tokenizer} must be a .model, a tokenizer.json or a prepared "
            "folder of this machine, but there is none; give its path, or sentencepiece to train "
            "one here",
        )
        is_bytes = config.tokenizer == "bytes"
        return ByteTokenizer(special_token_ids(config.special_tokens, 257)) if is_bytes else None
    kind, what = _FILES[form]
    require(
        path.is_file(),
        f"data.tokenizer={config.tokenizer} must be a file, but there is none; pass the path of a "
        f"{what}, or leave it out to train a tokenizer",
    )
    try:
        if form == ".tiktoken":
            content = from_tiktoken(path.read_bytes(), config)
        else:
            content = from_vocab(path, config) if form in _WITHOUT_PATTERN else path.read_bytes()
        model = load_subword_model(kind, content)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(
            f"data.tokenizer={config.tokenizer} must be a {what}, but does not parse; pass "
            f"another, or leave it out to train a tokenizer. The library reports: {error}"
        ) from None
    return open_subword_tokenizer(model, content, config)


def load_tokenizer(kind: str, content: bytes, special: Mapping[str, int]) -> Tokenizer:
    match kind:
        case "bytes":
            return ByteTokenizer(special)
        case "characters":
            return CharacterTokenizer(json.loads(content)["alphabet"], special)
        case "sentencepiece" | "huggingface":
            return SubwordTokenizer(load_subword_model(kind, content), content, special)
    raise ValueError(
        f"tokenizer kind {kind!r} must be bytes, characters, sentencepiece or huggingface"
    )


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    return content_digest(tokenizer.kind, tokenizer.content(), tokenizer.special)


def content_digest(kind: str, content: bytes, special: Mapping[str, int]) -> str:
    digest = hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()
    if special:
        digest += json.dumps(dict(special), sort_keys=True)
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return digest


_ROUND_TRIP_TEXTS = {
    "spaces at the start": "  a",
    "spaces at the end": "a  ",
    "double spaces": "a  b",
    "tabs": "\ta\tb",
    "line ends": "a\n\nb\n",
    "line ends of Windows": "a\r\nb\r\n",
    "composed accents (NFC)": "\u00e9",
    "combining accents (NFD)": "e\u0301",
    "full-width forms": "\uff21\uff11",
    "U+2581": "a\u2581b",
    "joined emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "NUL": "a\0b",
    "Chinese": "\u4e2d\u6587",
    "Arabic": "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "upper case": "A bC",
}


def lossy_texts(tokenizer: Tokenizer) -> list[str]:
    """Returns what does not survive encoding and decoding, such as "upper case".

    A fixed set of texts is tried. Text that the tokenizer refuses is not a failure.
    """
    decoded = {name: _decoded(tokenizer, text) for name, text in _ROUND_TRIP_TEXTS.items()}
    return [name for name, text in decoded.items() if text not in (_ROUND_TRIP_TEXTS[name], None)]


def _decoded(tokenizer: Tokenizer, text: str) -> str | None:
    try:
        return tokenizer.decode(tokenizer.encode(text))
    except SettingsError:
        return None
