"""A report of the batch of a step: its rows, the document spans in them, and their targets."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from configs.data import DataConfig
from configs.require import require
from data.batch import Batch
from data.batches import TrainRows, batch_digest
from data.mixture import Data
from data.packing import EpochRows
from data.prepare.text.source_files import record_name
from data.step_ranges import StepRange
from data.token_store import TokenStore, TokenStream
from data.tokenizers.special_tokens import END_OF_TEXT
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SpanReport:
    """Consecutive tokens of one document within a row."""

    name: str  # as `document_name` returns it
    document: int  # its number in its split, from 0
    start: int  # tokens of the document before the span, its separator not counted
    stop: int
    begins: bool  # whether the document begins here, so that its separator precedes the tokens
    num_tokens: int  # of the span in the row, with the separator
    text: str  # decoded; a character that the edge of a row cuts in two is U+FFFD


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """Inputs and targets of a segment of a row, special tokens by name."""

    inputs: str  # of a model with an encoder, those of the encoder
    targets: str  # those that count in the loss; "..." separates those that are not adjacent
    is_next: bool | None  # whether the second text follows the first; None without such pairs


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """A row of a batch."""

    index: int  # row of the batch, from 0
    source: str
    epoch: int  # completed passes over the source before this one
    row: int  # row of the epoch, in the order of the packing
    num_rows: int  # rows in an epoch of the source
    num_padding: int  # positions of the row that hold no token
    sha256: str  # of the row in all arrays of the batch
    spans: tuple[SpanReport, ...]
    """What was read, in order. For the causal objective these are the inputs; the last target is
    the next token of the stream, or a separator."""
    segments: tuple[SegmentReport, ...]
    """Inputs and targets of other objectives; empty for the causal one."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON, under the keys of `./tessera inspect --json`."""
        content = asdict(self)
        content["pieces"] = content.pop("spans")
        content["questions"] = [
            {"reads": segment["inputs"], "finds": segment["targets"], "follows": segment["is_next"]}
            for segment in content.pop("segments")
        ]
        return content


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The batch of a step."""

    step: int  # from 1, as in metrics.jsonl
    first_row: int  # index of its first row in the sequence of rows, counting skipped rows
    batch_sha256: str
    num_rows: int  # in the whole batch
    sequence_len: int
    rows: tuple[RowReport, ...]  # the requested ones

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}


def report_step(
    data: Data,
    config: DataConfig,
    steps: StepRange,
    step: int,
    *,
    rows: Sequence[int] | None = None,
) -> StepReport:
    """Returns the report of the batch of a step; any step costs the same.

    Raises:
        SettingsError: the batch has no such row.
    """
    batch_size, config = steps.batch_size, steps.data_config(config)
    wanted = range(batch_size) if rows is None else rows
    for row in wanted:
        require(
            0 <= row < batch_size,
            f"--rows={row} must be a row of train.batch_size={batch_size}, from 0 to "
            f"{batch_size - 1}",
        )
    sequence = TrainRows(data, config, steps)
    indices = [steps.row(step - 1, row) for row in range(batch_size)]
    batch = sequence.batch_maker.batch([sequence.read(index) for index in indices])
    return StepReport(
        step=step,
        first_row=indices[0],
        batch_sha256=batch_digest(batch),
        num_rows=batch_size,
        sequence_len=config.sequence_len,
        rows=tuple(_report_row(data, config, sequence, indices[row], row, batch) for row in wanted),
    )


def _report_row(
    data: Data,
    config: DataConfig,
    sequence: TrainRows,
    sequence_index: int,
    index: int,
    batch: Batch[np.ndarray],
) -> RowReport:
    address = sequence.address(sequence_index)
    source, rows = data.sources[address.source], sequence.rows[address.source]
    own = batch.map(lambda array: array[index : index + 1])
    is_causal = config.objective == "causal"
    return RowReport(
        index=index,
        source=source.name,
        epoch=address.epoch,
        row=address.row,
        num_rows=len(rows),
        num_padding=int(np.sum(own.segments_BT == 0)),
        sha256=batch_digest(own),
        spans=tuple(span_reports(rows, source.store, address.row)),
        segments=() if is_causal else tuple(segment_reports(own, source.store.tokenizer)),
    )


def segment_reports(row: Batch[np.ndarray], tokenizer: Tokenizer) -> Iterator[SegmentReport]:
    for segment in range(1, int(row.segments_BT.max()) + 1):
        here = row.segments_BT[0] == segment
        inputs = row.tokens_BT[0][here]
        if row.encoder is not None:
            inputs = row.encoder.tokens_BS[0][row.encoder.segments_BS[0] == segment]
        counts, targets = row.weights_BT[0][here] > 0, row.targets_BT[0][here]
        edges = np.flatnonzero(np.diff(counts)) + 1
        parts = zip(np.split(targets, edges), np.split(counts, edges), strict=True)
        is_next = 0 if row.next_BT is None else int(row.next_BT[0][here].max())
        yield SegmentReport(
            inputs=text_of(inputs, tokenizer),
            targets=" ... ".join(text_of(part, tokenizer) for part, count in parts if count.any()),
            is_next=None if is_next == 0 else is_next == 1,
        )


def text_of(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    names = {i: name for name, i in tokenizer.special.items()}
    names.setdefault(tokenizer.separator, END_OF_TEXT[0])
    return "".join(
        "".join(names[i] for i in group) if is_special else tokenizer.decode(group)
        for is_special, group in itertools.groupby(ids.tolist(), names.__contains__)
    )


def span_reports(rows: EpochRows, store: TokenStore, row: int) -> list[SpanReport]:
    starts = rows.stream.starts
    reports = []
    for start, stop in rows.packing.spans(row):
        inner = starts[np.searchsorted(starts, start, "right") : np.searchsorted(starts, stop)]
        edges = [start, *inner.tolist(), stop]
        reports += [
            _report_span(rows.stream, store, begin, end) for begin, end in itertools.pairwise(edges)
        ]
    return reports


def _report_span(stream: TokenStream, store: TokenStore, begin: int, end: int) -> SpanReport:
    position = stream.locate(begin)
    return SpanReport(
        name=document_name(store, position.file, position.number),
        document=position.document,
        start=max(position.offset, 0),
        stop=position.offset + end - begin,
        begins=position.offset < 0,
        num_tokens=end - begin,
        text=store.tokenizer.decode(stream.read(begin, end).tolist()),
    )


def document_name(store: TokenStore, file: int, number: int) -> str:
    entry = store.files[file]
    return record_name(entry["name"], entry["kind"], number)
