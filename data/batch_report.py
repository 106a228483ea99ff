"""What a step saw: the rows of its batch, and the pieces of documents that they are made of."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.check import require
from configs.data import DataConfig
from data.batch import Batch
from data.batches import TrainRows, batch_digest
from data.mixture import Data
from data.prepare.text.source_files import record_name
from data.rows import EpochRows
from data.step_ranges import StepRange
from data.token_store import TokenStore, TokenStream
from data.tokenizers.special_tokens import END_OF_TEXT
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens that follow one another in one document."""

    name: str
    """File of the document, with its line or row from 1 where a file has many."""
    document: int
    """Number of the document in its split, from 0."""
    start: int
    """Tokens of the document before the piece; its separator is not counted."""
    stop: int
    """Tokens of the document up to the end of the piece."""
    begins: bool
    """Whether the piece has the separator before its tokens, as the document begins in it."""
    num_tokens: int
    """Tokens of the row that it fills, the separator among them."""
    text: str
    """Decoded; a character that is cut in two by the edge of a row is U+FFFD."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the model reads of a segment of a row and what it is to find, special tokens by name."""

    reads: str
    """Of a model with an encoder what that reads."""
    finds: str
    """The targets that count; "..." stands between those that are not neighbours."""
    follows: bool | None
    """Whether the second text is what follows the first; None where nobody asks."""


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """A row of a batch."""

    index: int
    """Row of the batch, from 0."""
    source: str
    epoch: int
    """How often the source was gone through before, from 0."""
    row: int
    """Row of the epoch, in the order of the packing."""
    num_rows: int
    """EpochRows in an epoch of the source."""
    num_padding: int
    """Positions of the row that hold no token."""
    sha256: str
    """Digest of the row in all arrays of the batch."""
    pieces: tuple[Piece, ...]
    """What was read, in order. For the causal objective these are the inputs; the last target is
    the token that would come next, or a separator."""
    questions: tuple[Question, ...]
    """What another objective made of that; none for the causal one."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The batch of a step."""

    step: int
    """From 1, as in metrics.jsonl."""
    first_row: int
    """Where in the sequence of rows its first one is, counting those that were skipped."""
    batch_sha256: str
    num_rows: int
    """EpochRows in the whole batch."""
    sequence_len: int
    """Tokens in a row."""
    rows: tuple[RowReport, ...]
    """Those that were asked for."""


def report_step(
    data: Data,
    config: DataConfig,
    steps: StepRange,
    step: int,
    *,
    rows: Sequence[int] | None = None,
) -> StepReport:
    """Returns what the step-th step of a run took; any step costs the same.

    Args:
        steps: the range of steps that it belongs to.
        step: from 1.
        rows: which rows of the batch to report; None reports all.

    Raises:
        SettingsError: the batch has no such row.
        IntegrityError: a shard is not as it was written.
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
    places = [steps.row(step - 1, row) for row in range(batch_size)]
    batch = sequence.objective.batch([sequence.read(place) for place in places])
    return StepReport(
        step=step,
        first_row=places[0],
        batch_sha256=batch_digest(batch),
        num_rows=batch_size,
        sequence_len=config.sequence_len,
        rows=tuple(_report_row(data, config, sequence, places[row], row, batch) for row in wanted),
    )


def _report_row(
    data: Data,
    config: DataConfig,
    sequence: TrainRows,
    place: int,
    index: int,
    batch: Batch[np.ndarray],
) -> RowReport:
    address = sequence.address(place)
    source, rows = data.sources[address.source], sequence.rows[address.source]
    own = batch.map(lambda array: array[index : index + 1])
    pieces = pieces_of_row(rows, source.store, address.row)
    is_causal = config.objective == "causal"
    return RowReport(
        index=index,
        source=source.name,
        epoch=address.epoch,
        row=address.row,
        num_rows=len(rows),
        num_padding=int(np.sum(own.segments_BT == 0)),
        sha256=batch_digest(own),
        pieces=tuple(pieces),
        questions=() if is_causal else tuple(questions_of_row(own, source.store.tokenizer)),
    )


def questions_of_row(row: Batch[np.ndarray], tokenizer: Tokenizer) -> Iterator[Question]:
    """Yields what is asked of each segment of a batch of one row."""
    for segment in range(1, int(row.segments_BT.max()) + 1):
        here = row.segments_BT[0] == segment
        reads = row.tokens_BT[0][here]
        if row.encoder is not None:
            reads = row.encoder.tokens_BS[0][row.encoder.segments_BS[0] == segment]
        counts, targets = row.weights_BT[0][here] > 0, row.targets_BT[0][here]
        edges = np.flatnonzero(np.diff(counts)) + 1
        parts = zip(np.split(targets, edges), np.split(counts, edges), strict=True)
        answer = 0 if row.next_BT is None else int(row.next_BT[0][here].max())
        yield Question(
            reads=spelled(reads, tokenizer),
            finds=" ... ".join(spelled(part, tokenizer) for part, count in parts if count.any()),
            follows=None if answer == 0 else answer == 1,
        )


def spelled(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns the text of tokens, those that stand for no text by their names."""
    names = {i: name for name, i in tokenizer.special.items()}
    names.setdefault(tokenizer.separator, END_OF_TEXT[0])
    return "".join(
        "".join(names[i] for i in group) if is_special else tokenizer.decode(group)
        for is_special, group in itertools.groupby(ids.tolist(), names.__contains__)
    )


def pieces_of_row(rows: EpochRows, store: TokenStore, row: int) -> list[Piece]:
    """Returns the inputs of a row, broken down where documents begin."""
    starts = rows.stream.starts
    pieces = []
    for start, stop in rows.packing.spans(row):
        inner = starts[np.searchsorted(starts, start, "right") : np.searchsorted(starts, stop)]
        edges = [start, *inner.tolist(), stop]
        pieces += [
            _piece(rows.stream, store, begin, end) for begin, end in itertools.pairwise(edges)
        ]
    return pieces


def _piece(stream: TokenStream, store: TokenStore, begin: int, end: int) -> Piece:
    place = stream.locate(begin)
    return Piece(
        name=document_name(store, place.file, place.number),
        document=place.document,
        start=max(place.offset, 0),
        stop=place.offset + end - begin,
        begins=place.offset < 0,
        num_tokens=end - begin,
        text=store.tokenizer.decode(stream.read(begin, end).tolist()),
    )


def document_name(store: TokenStore, file: int, number: int) -> str:
    """Returns the file of a document, with its line or row from 1 where a file has many."""
    entry = store.files[file]
    return record_name(entry["name"], entry["kind"], number)
