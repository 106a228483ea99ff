"""Text to token ids and back. Every tokenizer has one extra id that stands between documents."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from configs.check import require
from configs.errors import SettingsError
from configs.run import DataConfig

_SPACE_MARK = "\u2581"  # how SentencePiece writes a space


class Tokenizer(Protocol):
    """What the rest of the product knows of a tokenizer."""

    kind: str
    vocab_size: int
    """Ids are below it; the separator is one of them."""
    separator: int
    """Begins every document and so ends the one before; never the id of any text."""

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32, no separator; SettingsError if it has none for it."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; the separator is left out."""
        ...

    def content(self) -> bytes:
        """Returns what `load` makes the same tokenizer from."""
        ...


def _check_encodable(text: str) -> None:
    """Raises SettingsError for half a UTF-16 pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the text has {text[error.start]!r} at character {error.start}, which UTF-8 cannot "
            "write; leave it out"
        ) from None


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    vocab_size = 257
    separator = 256

    def encode(self, text: str) -> np.ndarray:
        _check_encodable(text)
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def content(self) -> bytes:
        return b"bytes"


class CharacterTokenizer:
    """The characters of a corpus, in the order of their code points."""

    kind = "characters"

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.separator = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        points = np.array([ord(c) for c in alphabet], np.int64)
        assert (np.diff(points) > 0).all(), "the alphabet must be sorted, without repetition"
        self._points = points

    def encode(self, text: str) -> np.ndarray:
        _check_encodable(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        ids = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        unknown = self._points[ids] != points
        if unknown.any():
            character = chr(points[unknown][0])
            raise SettingsError(
                f"the character {character!r} is not among the {len(self.alphabet)} that the "
                "tokenizer knows: leave it out, or train with --data.tokenizer bytes"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.alphabet[i] for i in ids if i < self.separator)

    def content(self) -> bytes:
        return json.dumps({"alphabet": self.alphabet}).encode()


class SentencePieceTokenizer:
    """A SentencePiece model; its end-of-sentence piece (or its beginning) is the separator."""

    kind = "sentencepiece"

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self.vocab_size: int = self._processor.vocab_size()
        end, begin = self._processor.eos_id(), self._processor.bos_id()
        self.separator: int = end if end >= 0 else begin
        require(
            self.separator >= 0,
            "data.tokenizer: the .model has neither an end nor a beginning piece (</s>, <s>), but "
            "one must separate documents; train it with eos_id or bos_id",
        )
        mark = self._processor.piece_to_id
        self._mark_bytes = [mark(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    def encode(self, text: str) -> np.ndarray:
        _check_encodable(text)
        # The mark itself would come back as a space; as bytes it comes back as it was.
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE_MARK)):
            ids += self._mark_bytes * (i > 0) + self._processor.encode(part)
        return np.array(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def content(self) -> bytes:
        return self._model


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of the kind and content of a tokenizer."""
    return content_digest(tokenizer.kind, tokenizer.content())


def content_digest(kind: str, content: bytes) -> str:
    """Returns the digest of the tokenizer that `load_tokenizer` would make of these."""
    return hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()


def load_tokenizer(kind: str, content: bytes) -> Tokenizer:
    """Returns the tokenizer whose `content` this was."""
    match kind:
        case "bytes":
            return ByteTokenizer()
        case "characters":
            return CharacterTokenizer(json.loads(content)["alphabet"])
        case "sentencepiece":
            return SentencePieceTokenizer(content)
    raise ValueError(f"tokenizer kind {kind!r} must be bytes, characters or sentencepiece")


def make_tokenizer(config: DataConfig, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer that the settings ask for, learned from texts where it is learned.

    Raises:
        SettingsError: the .model cannot be read, or there is too little text to train one.
    """
    match config.tokenizer:
        case "bytes":
            return ByteTokenizer()
        case "characters":
            return CharacterTokenizer("".join(sorted({c for text in texts for c in set(text)})))
        case "sentencepiece":
            return _train_sentencepiece(config.vocab_size, texts)
    path = Path(config.tokenizer).expanduser()
    require(path.is_file(), f"data.tokenizer={config.tokenizer} must be a file, but there is none")
    try:
        return SentencePieceTokenizer(path.read_bytes())
    except RuntimeError:
        raise SettingsError(
            f"data.tokenizer={config.tokenizer} must be a SentencePiece model, but does not parse"
        ) from None


_SAMPLE_CHARACTERS = 4_000_000
_LINE_CHARACTERS = 1000
_NUM_SPECIAL = 2 + 256  # <unk>, </s> and the bytes


def _train_sentencepiece(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Trains a unigram model that gives back any text exactly: bytes stand in for what is rare."""
    model = io.BytesIO()
    lines = list(_even_sample(_lines(texts), _SAMPLE_CHARACTERS))
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise SettingsError(
            f"data.vocab_size={vocab_size} does not suit this text of "
            f"{sum(map(len, lines))} characters (a trained tokenizer needs more than "
            f"{_NUM_SPECIAL} pieces and enough text): pass another --data.vocab_size, or "
            f"--data.tokenizer bytes. SentencePiece says: {str(error).splitlines()[0]}"
        ) from None
    return SentencePieceTokenizer(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]


def _even_sample(lines: Iterator[str], num_characters: int) -> Iterator[str]:
    """Yields every k-th line, k such that about num_characters are left of all."""
    lines_ = list(lines)
    stride = -(-sum(map(len, lines_)) // num_characters) or 1
    yield from lines_[::stride]
