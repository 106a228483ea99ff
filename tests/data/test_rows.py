"""Rows of the causal objective, by eye, and that an epoch of them leaves nothing out."""

import itertools

import jax
import numpy as np
import pytest
from small_data import (
    assert_same_batch,
    data_config,
    numbered_data,
    prepare_quietly,
    write_folder,
)

from data.batch import Batch
from data.objectives.causal import causal_batch
from data.packing import EpochRows

SEP = 9


def row_of(*window: int, sequence_len: int = 8) -> Batch[np.ndarray]:
    spans = [np.array(window, np.int32)] if window else []
    return first_row(causal_batch([spans], sequence_len, separator=SEP))


def first_row(batch: Batch[np.ndarray]) -> Batch[np.ndarray]:
    return batch.map(lambda field: field[0])


def assert_row(row: Batch[np.ndarray], **fields: list[int]) -> None:
    for name, wanted in fields.items():
        assert getattr(row, name).tolist() == wanted, name


def test_each_token_predicts_the_next():
    assert_row(
        row_of(1, 2, 3, 4, 5, 6, 7, 8, 0),
        tokens_BT=[1, 2, 3, 4, 5, 6, 7, 8],
        targets_BT=[2, 3, 4, 5, 6, 7, 8, 0],
        weights_BT=[1, 1, 1, 1, 1, 1, 1, 1],
        segments_BT=[1, 1, 1, 1, 1, 1, 1, 1],
        positions_BT=[0, 1, 2, 3, 4, 5, 6, 7],
    )


def test_a_separator_begins_a_document_and_is_the_last_target_of_the_one_before():
    assert_row(
        row_of(1, 2, SEP, 3, 4, 5, SEP, 6, 7),
        tokens_BT=[1, 2, SEP, 3, 4, 5, SEP, 6],
        targets_BT=[2, SEP, 3, 4, 5, SEP, 6, 7],
        weights_BT=[1, 1, 1, 1, 1, 1, 1, 1],
        segments_BT=[1, 1, 2, 2, 2, 2, 3, 3],
        positions_BT=[0, 1, 0, 1, 2, 3, 0, 1],
    )


def test_a_row_that_begins_with_a_separator_begins_with_its_document():
    assert_row(
        row_of(SEP, 1, SEP, SEP, 2, 3, 4, 5, SEP),
        tokens_BT=[SEP, 1, SEP, SEP, 2, 3, 4, 5],
        targets_BT=[1, SEP, SEP, 2, 3, 4, 5, SEP],
        weights_BT=[1, 1, 1, 1, 1, 1, 1, 1],
        segments_BT=[1, 1, 2, 3, 3, 3, 3, 3],
        positions_BT=[0, 1, 0, 0, 1, 2, 3, 4],
    )


def test_padding_has_no_weight_and_no_document():
    row = row_of(SEP, 1, 2, SEP, 3, SEP)
    assert_row(
        row,
        targets_BT=[1, 2, SEP, 3, SEP, 0, 0, 0],
        weights_BT=[1, 1, 1, 1, 1, 0, 0, 0],
        segments_BT=[1, 1, 1, 2, 2, 0, 0, 0],
    )
    assert row.tokens_BT[:5].tolist() == [SEP, 1, 2, SEP, 3]
    assert row.positions_BT[:5].tolist() == [0, 1, 2, 0, 1]


def test_padding_is_no_document_even_where_zero_is_the_separator():
    row = first_row(causal_batch([[np.array([0, 5, 6, 0], np.int32)]], 5, separator=0))
    assert_row(row, weights_BT=[1, 1, 1, 0, 0], segments_BT=[1, 1, 1, 0, 0])


def test_a_padding_row_has_no_weight_and_no_document():
    row = row_of(sequence_len=4)
    assert_row(row, weights_BT=[0] * 4, segments_BT=[0] * 4, targets_BT=[0] * 4, tokens_BT=[0] * 4)


@pytest.mark.parametrize("row", [row_of(1, SEP, 2), row_of(*range(9)), row_of()])
def test_rows_have_the_types_of_a_batch(row):
    fields = jax.tree.leaves(row)
    dtypes = ["int32", "int32", "float32", "int32", "int32"]
    assert [field.dtype.name for field in fields] == dtypes
    assert [field.shape for field in fields] == [(8,)] * 5


def test_rows_of_a_batch_are_those_that_they_are_alone():
    rows = [
        [np.array([1, 2, SEP, 3, SEP])],
        [],
        [np.array([SEP, 1, SEP]), np.array([SEP, 4, 5, SEP])],
        [np.arange(9)],
    ]
    batch = causal_batch(rows, 8, SEP)
    for i, row in enumerate(rows):
        alone = causal_batch([row], 8, SEP)
        assert_same_batch(batch.map(lambda field, i=i: field[i : i + 1]), alone)


def test_each_span_of_a_row_is_a_document_of_its_own():
    spans = [np.array([SEP, 1, SEP]), np.array([2, 3, 4]), np.array([SEP, SEP])]
    assert_row(
        first_row(causal_batch([spans], 8, SEP)),
        tokens_BT=[SEP, 1, 2, 3, SEP, 0, 0, 0],
        targets_BT=[1, SEP, 3, 4, SEP, 0, 0, 0],
        weights_BT=[1, 1, 1, 1, 1, 0, 0, 0],
        segments_BT=[1, 1, 2, 2, 3, 0, 0, 0],
    )


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("sequence_len", [1, 2, 7, 13, 64, 90, 91, 92, 1000])
def test_every_token_is_a_target_exactly_once_per_epoch(tmp_path, sequence_len, packing):
    data = numbered_data(tmp_path)  # 92 tokens: the separator, 90 that differ, the separator
    rows = EpochRows(data.sources[0].store.train, sequence_len, packing)
    batch = causal_batch([rows.read(i) for i in range(len(rows))], sequence_len, separator=100)
    counted = batch.weights_BT > 0
    assert counted.any(axis=1).all(), "a row without a target"
    pairs = sorted(zip(batch.tokens_BT[counted], batch.targets_BT[counted], strict=True))
    stream = [100, *range(90), 100]
    assert pairs == sorted(itertools.pairwise(stream))


def test_segments_of_an_epoch_are_the_documents_of_the_text(tmp_path):
    write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", sequence_len=2000)
    store = prepare_quietly(config, tmp_path / "cache")
    batch = causal_batch(
        [EpochRows(store.train, 2000, "concat").read(0)], 2000, store.tokenizer.separator
    )
    row = first_row(batch)
    said = store.manifest["splits"]["train"]
    _, lengths = np.unique(row.segments_BT[row.weights_BT > 0], return_counts=True)
    texts = [store.tokenizer.decode(row.tokens_BT[row.segments_BT == i + 1]) for i in range(6)]
    assert len(lengths) == said["documents"]
    assert sum(lengths) == said["tokens"] - 1
    assert [len(text.encode()) + 1 for text in texts[: len(lengths)]] == lengths.tolist()


def test_best_fit_cuts_no_document_that_fits_and_leaves_little_empty(tmp_path):
    write_folder(tmp_path / "texts")
    config = data_config(tmp_path / "texts", sequence_len=400, packing="best_fit")
    stream = prepare_quietly(config, tmp_path / "cache").train
    rows = EpochRows(stream, config.sequence_len, config.packing)
    spans = [span for row in range(len(rows)) for span in rows.packing.spans(row)]
    ends = [*stream.starts[1:].tolist(), stream.num_tokens - 1]
    for start, end in zip(stream.starts.tolist(), ends, strict=True):
        pieces = sorted(span for span in spans if start <= span[0] < end)
        assert pieces == [(at, min(at + 400, end)) for at in range(start, end, 400)]
