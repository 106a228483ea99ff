"""The objective of a run: how long its rows are in the stream, and what becomes of each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from configs.check import require
from configs.data import DataConfig
from configs.objective import NUM_SENTINELS
from data.batch import Batch
from data.objectives.causal import causal, causal_batch, infill, prefix
from data.objectives.masked import Masking, masked, masked_pairs
from data.objectives.segments import BatchShape, DocumentSpan, Segment, document_spans, pack
from data.objectives.span_corruption import UL2, Denoiser, corrupt, lengths
from data.tokenizers.tokenizer import Tokenizer


class RowTokens(NamedTuple):
    """A row as it is read, before an objective has made something of it."""

    spans: Sequence[np.ndarray] = ()
    """Tokens of each span, with the one after it; none is padding."""
    key: tuple[int, ...] = ()
    """What chance depends on: of a row of training the seed and its place in the sequence."""
    others: Sequence[np.ndarray] = ()
    """Spans of another row, for an objective that asks for them."""


MakeSegments = Callable[
    [Sequence[DocumentSpan], Sequence[DocumentSpan], np.random.Generator], Sequence[Segment]
]
"""From the pieces of a row, those of another one and chance to segments."""


class BatchMaker:
    """Makes batches of rows: a pure function of the rows and their keys."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        """Prepares the objectives.

        Raises:
            SettingsError: the tokenizer lacks special tokens or words that they need.
        """
        self._config, self._separator = config, tokenizer.separator
        kinds = config.objectives()
        missing = [name for name in config.special_groups if name not in config.special_tokens]
        missing = [name for name in missing if not _has(tokenizer, name)]
        require(
            not missing,
            f"data.special_tokens={' '.join(config.special_tokens) or None} must name "
            f"{' '.join(config.special_groups)} for data.objective={config.objective}",
        )
        self._makes = [self._make(name, tokenizer) for name, _ in kinds]
        weights = np.array([weight for _, weight in kinds])
        self._shares = np.cumsum(weights / weights.sum())
        self._form = batch_shape(config)

    @property
    def needs_other_row(self) -> bool:
        """Whether a row is to come with another one."""
        return any(name == "masked_pairs" for name, _ in self._config.objectives())

    def batch(self, rows: Sequence[RowTokens]) -> Batch[np.ndarray]:
        """Returns the batch [B, T] of rows; one without spans is padding."""
        if self._config.objective == "causal":
            spans = [list(row.spans) for row in rows]
            return causal_batch(spans, self._config.sequence_len, self._separator)
        return pack([self._segments(row) for row in rows], self._form)

    def _segments(self, row: RowTokens) -> Sequence[Segment]:
        if not row.spans:
            return []
        draw = np.random.default_rng(row.key)
        which = 0
        if len(self._makes) > 1:
            which = int(np.searchsorted(self._shares, draw.random(), side="right"))
        pieces = list(document_spans(row.spans, self._separator))
        others = list(document_spans(row.others, self._separator))
        return self._makes[min(which, len(self._makes) - 1)](pieces, others, draw)

    def _make(self, name: str, tokenizer: Tokenizer) -> MakeSegments:
        config, separator = self._config, self._separator
        special = dict(tokenizer.special)
        match name:
            case "causal":
                return lambda pieces, _, draw: list(causal(pieces, separator))
            case "prefix":
                two_sided = config.target_len is not None
                return lambda pieces, _, draw: list(
                    prefix(pieces, separator, draw, two_sided=two_sided)
                )
            case "infill":
                change = partial(infill, rate=config.infill_rate, most=_most_changed(config, name))
                return lambda pieces, _, draw: list(change(pieces, separator, special, draw))
            case "masked":
                masking = _masking(config, tokenizer)
                return lambda pieces, _, draw: list(masked(pieces, special, masking, draw))
            case "masked_pairs":
                masking = _masking(config, tokenizer)
                most = _most_changed(config, name)
                return lambda pieces, others, draw: list(
                    masked_pairs(pieces, others, special, masking, draw, most=most)
                )
        sentinels = np.array([special[f"<extra_id_{i}>"] for i in range(NUM_SENTINELS)])
        denoisers = denoisers_of(config, name)

        def denoise(
            pieces: Sequence[DocumentSpan], _: Sequence[DocumentSpan], draw: np.random.Generator
        ) -> Sequence[Segment]:
            denoiser = denoisers[int(draw.integers(len(denoisers)))]
            return list(
                corrupt(
                    pieces,
                    denoiser,
                    separator,
                    sentinels,
                    draw,
                    target_len=config.target_len,
                    most_targets=config.target_len or config.sequence_len,
                )
            )

        return denoise


def batch_shape(config: DataConfig) -> BatchShape:
    """Returns the shape of the batches, the same whatever objective a row has."""
    names = [name for name, _ in config.objectives()]
    two_sided = config.target_len is not None
    return BatchShape(
        config.target_len if config.target_len is not None else config.sequence_len,
        config.sequence_len if two_sided else None,
        has_prefix=not two_sided and any(name in ("prefix", "span", "ul2") for name in names),
        has_pairs="masked_pairs" in names,
    )


def empty_row(config: DataConfig) -> Batch[np.ndarray]:
    """Returns a row of padding: a batch of one, which has the fields of all others."""
    if config.objective == "causal":
        return causal_batch([[]], config.sequence_len, separator=0)
    return pack([[]], batch_shape(config))


def stream_len(config: DataConfig) -> int:
    """Returns how many tokens of the stream a row has, so that all that is made of it fits.

    Raises:
        SettingsError: no token would fit, or spans would be more than there are tokens for.
    """
    length = min(_stream_len(config, name) for name, _ in config.objectives())
    require(
        length >= 2 or config.objective == "causal",
        f"data.sequence_len={config.sequence_len} and data.target_len={config.target_len} must be "
        f"larger for data.objective={config.objective}",
    )
    return length


def _stream_len(config: DataConfig, name: str) -> int:
    T = config.sequence_len
    match name:
        case "causal" | "masked":
            return T
        case "prefix":
            return min(T, config.target_len or T)
        case "infill" | "masked_pairs":
            return T - 3 * _most_changed(config, name)
    denoisers = denoisers_of(config, name)
    fitting = (n for n in range(2 * T, 1, -1) if all(_fits(d, n, config) for d in denoisers))
    length = next(fitting, 0)
    most = max(denoiser.counts(length)[1] for denoiser in denoisers)
    require(
        most <= NUM_SENTINELS,
        f"data.sequence_len={T} must be shorter, or data.span_len={config.span_len} longer: a row "
        f"has {most} spans, but there are {NUM_SENTINELS} tokens that stand for them",
    )
    return length


def _fits(denoiser: Denoiser, length: int, config: DataConfig) -> bool:
    given, found = lengths(denoiser, length)
    if config.target_len is None:
        return given + found - 1 <= config.sequence_len
    return given <= config.sequence_len and found <= config.target_len


def denoisers_of(config: DataConfig, name: str) -> tuple[Denoiser, ...]:
    """Returns the kinds of spans of an objective."""
    return UL2 if name == "ul2" else (Denoiser(config.span_density, config.span_len),)


def _most_changed(config: DataConfig, name: str) -> int:
    """Returns how many pieces of a row may get longer, by three tokens each."""
    return max(config.sequence_len // (256 if name == "infill" else 128), 1)


def _has(tokenizer: Tokenizer, group: str) -> bool:
    token = {"masked": "[MASK]", "span": "<extra_id_99>", "infill": "<|fim_middle|>"}[group]
    return token in tokenizer.special


def _masking(config: DataConfig, tokenizer: Tokenizer) -> Masking:
    is_ordinary = np.ones(tokenizer.vocab_size, bool)
    is_ordinary[[tokenizer.separator, *tokenizer.special.values()]] = False
    return Masking(
        rate=config.mask_rate,
        mask=tokenizer.special["[MASK]"],
        ordinary=np.flatnonzero(is_ordinary).astype(np.int32),
        starts_word=tokenizer.word_starts() if config.whole_words else None,
    )
