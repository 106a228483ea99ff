"""Makes batches under the objective of a run, and says how many stream tokens a row takes."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from configs.data import DataConfig
from configs.objective import NUM_SENTINELS
from configs.require import require
from data.batch import Batch
from data.objectives.causal import causal, causal_batch, infill, prefix
from data.objectives.masked import Masking, masked, masked_pairs
from data.objectives.pack_segments import BatchShape, DocumentSpan, Segment, document_spans, pack
from data.objectives.span_corruption import UL2, Denoiser, corrupt, lengths
from data.tokenizers.tokenizer import Tokenizer

_TOKEN_OF_GROUP = {"masked": "[MASK]", "span": "<extra_id_99>", "infill": "<|fim_middle|>"}


class RowTokens(NamedTuple):
    """The tokens of a row, before the objective is applied."""

    spans: Sequence[np.ndarray] = ()
    """Tokens of each stream span, with the token after it; no span is a row of padding."""
    rng_key: tuple[int, ...] = ()
    """Seed of the random choices: of a training row, the run's seed and the row's index."""
    other_spans: Sequence[np.ndarray] = ()
    """Spans of another row, for next-sentence prediction."""


MakeSegments = Callable[
    [Sequence[DocumentSpan], Sequence[DocumentSpan], np.random.Generator], Iterable[Segment]
]
"""From the document spans of a row, those of another row, and an RNG to segments."""


class BatchMaker:
    """Makes batches: a pure function of the tokens of rows and their RNG keys."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self._config, self._separator = config, tokenizer.separator
        kinds = config.objectives()
        missing = [name for name in config.special_groups if name not in config.special_tokens]
        missing = [name for name in missing if _TOKEN_OF_GROUP[name] not in tokenizer.special]
        require(
            not missing,
            f"data.special_tokens={' '.join(config.special_tokens) or None} must name "
            f"{' '.join(config.special_groups)} for data.objective={config.objective}",
        )
        self._makes = [self._make(name, tokenizer) for name, _ in kinds]
        weights = np.array([weight for _, weight in kinds])
        self._shares = np.cumsum(weights / weights.sum())
        self._shape = batch_shape(config)

    @property
    def needs_other_row(self) -> bool:
        return any(name == "masked_pairs" for name, _ in self._config.objectives())

    def batch(self, rows: Sequence[RowTokens]) -> Batch[np.ndarray]:
        """Returns the batch [B, T] of rows; a row without spans is padding."""
        if self._config.objective == "causal":
            spans = [list(row.spans) for row in rows]
            return causal_batch(spans, self._config.sequence_len, self._separator)
        return pack([self._segments(row) for row in rows], self._shape)

    def _segments(self, row: RowTokens) -> Iterable[Segment]:
        if not row.spans:
            return []
        rng = np.random.default_rng(row.rng_key)
        which = 0
        if len(self._makes) > 1:
            which = int(np.searchsorted(self._shares, rng.random(), side="right"))
        spans = list(document_spans(row.spans, self._separator))
        others = list(document_spans(row.other_spans, self._separator))
        return self._makes[min(which, len(self._makes) - 1)](spans, others, rng)

    def _make(self, name: str, tokenizer: Tokenizer) -> MakeSegments:
        config, separator = self._config, self._separator
        special = dict(tokenizer.special)
        match name:
            case "causal":
                return lambda spans, _, rng: causal(spans, separator)
            case "prefix":
                two_sided = config.target_len is not None
                return lambda spans, _, rng: prefix(spans, separator, rng, two_sided=two_sided)
            case "infill":
                rate, most = config.infill_rate, _most_changed(config, name)
                return lambda spans, _, rng: infill(
                    spans, separator, special, rng, rate=rate, most=most
                )
            case "masked":
                masking = _masking(config, tokenizer)
                return lambda spans, _, rng: masked(spans, special, masking, rng)
            case "masked_pairs":
                masking, most = _masking(config, tokenizer), _most_changed(config, name)
                return lambda spans, others, rng: masked_pairs(
                    spans, others, special, masking, rng, most=most
                )
        sentinels = np.array([special[f"<extra_id_{i}>"] for i in range(NUM_SENTINELS)])
        denoisers = denoisers_of(config, name)
        most_targets = config.target_len or config.sequence_len
        return lambda spans, _, rng: corrupt(
            spans,
            denoisers[int(rng.integers(len(denoisers)))],
            separator,
            sentinels,
            rng,
            target_len=config.target_len,
            most_targets=most_targets,
        )


def batch_shape(config: DataConfig) -> BatchShape:
    """Returns the shape of the batches, the same for every objective of a mixture."""
    names = [name for name, _ in config.objectives()]
    two_sided = config.target_len is not None
    return BatchShape(
        config.target_len if config.target_len is not None else config.sequence_len,
        config.sequence_len if two_sided else None,
        has_prefix=not two_sided and any(name in ("prefix", "span", "ul2") for name in names),
        has_pairs="masked_pairs" in names,
    )


def empty_row(config: DataConfig) -> Batch[np.ndarray]:
    """Returns a batch of one padding row, with the fields of all other batches."""
    if config.objective == "causal":
        return causal_batch([[]], config.sequence_len, separator=0)
    return pack([[]], batch_shape(config))


def stream_len(config: DataConfig) -> int:
    """Returns how many tokens of the stream a row takes, so that its inputs and targets fit."""
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
        f"has {most} masked spans, but there are only {NUM_SENTINELS} sentinel tokens",
    )
    return length


def _fits(denoiser: Denoiser, length: int, config: DataConfig) -> bool:
    inputs, targets = lengths(denoiser, length)
    if config.target_len is None:
        return inputs + targets - 1 <= config.sequence_len
    return inputs <= config.sequence_len and targets <= config.target_len


def denoisers_of(config: DataConfig, name: str) -> tuple[Denoiser, ...]:
    return UL2 if name == "ul2" else (Denoiser(config.span_density, config.span_len),)


def _most_changed(config: DataConfig, name: str) -> int:
    """Returns how many document spans of a row may get three tokens longer."""
    return max(config.sequence_len // (256 if name == "infill" else 128), 1)


def _masking(config: DataConfig, tokenizer: Tokenizer) -> Masking:
    is_ordinary = np.ones(tokenizer.vocab_size, bool)
    is_ordinary[[tokenizer.separator, *tokenizer.special.values()]] = False
    return Masking(
        rate=config.mask_rate,
        mask=tokenizer.special["[MASK]"],
        ordinary=np.flatnonzero(is_ordinary).astype(np.int32),
        starts_word=tokenizer.word_starts() if config.whole_words else None,
    )
