"""metrics.jsonl and TensorBoard: what is written is what can be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.record.metrics_writer import MetricsWriter, shortest
from train.record.run_folder import read_metrics


def random_float32(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns finite float32 of every magnitude: random bits."""
    values = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def read_tensorboard(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_written_number_gives_back_the_same_float32(rng):
    for value in random_float32(rng, 20_000):
        read = np.float32(json.loads(json.dumps(shortest(value))))
        assert read.tobytes() == value.tobytes()


def test_a_written_number_is_the_shortest_that_does(rng):
    for value in random_float32(rng, 20_000):
        written = json.dumps(shortest(value))
        assert float(written) == float(np.format_float_scientific(value, unique=True))
        digits = written.lower().split("e")[0].replace(".", "").strip("-0")
        if len(digits) > 1:
            shorter = np.float32(f"{float(value):.{len(digits) - 2}e}")
            assert shorter != value, f"{written} could be {shorter}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_written_as_null(value: float):
    assert shortest(np.float32(value)) is None


def test_tensorboard_shows_what_the_metrics_say(tmp_path: Path, rng):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, tmp_path / "tensorboard")
    writer.begin(first_step=0)
    for step in range(1, 6):
        loss, score = (shortest(x) for x in rng.standard_normal(2))
        record = {"step": step, "loss": loss, "eval/loss": score, "mfu_full": None}
        writer.write(record, time=100.0 + step)
    writer.close()
    shown = read_tensorboard(tmp_path / "tensorboard")
    assert set(shown.Tags()["scalars"]) == {"train/loss", "eval/loss"}
    for tag, key in (("train/loss", "loss"), ("eval/loss", "eval/loss")):
        said = [(step, np.float32(record[key])) for step, record in read_metrics(path).items()]
        assert scalars(shown, tag) == said
    assert [event.wall_time for event in shown.Scalars("train/loss")] == [101, 102, 103, 104, 105]


def test_tensorboard_shows_a_sample_as_text(tmp_path: Path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.begin(first_step=0)
    writer.write_text("sample", "# no heading\n*x*", step=7, time=1.0)
    writer.close()
    shown = read_tensorboard(tmp_path / "tensorboard")
    assert shown.SummaryMetadata("sample").plugin_data.plugin_name == "text"
    (event,) = shown.Tensors("sample")
    # Four spaces make a line code for TensorBoard, so that nothing in it is taken for markup.
    assert event.tensor_proto.string_val[0].decode() == "    # no heading\n    *x*"
    assert event.step == 7


def test_after_a_resume_tensorboard_shows_the_superseding_values(tmp_path: Path):
    path, tensorboard = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    killed = MetricsWriter(path, tensorboard)
    killed.begin(first_step=0)
    for step in range(1, 7):
        killed.write({"step": step, "loss": 100.0 + step}, time=float(step))
    killed.flush()
    resumed = MetricsWriter(path, tensorboard)
    resumed.begin(first_step=3)
    for step in range(4, 6):
        resumed.write({"step": step, "loss": 200.0 + step}, time=float(step))
    resumed.close()
    expected = [(1, 101), (2, 102), (3, 103), (4, 204), (5, 205)]
    assert scalars(read_tensorboard(tensorboard), "train/loss") == expected
    killed.close()


def test_what_was_flushed_outlives_the_process(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, tmp_path / "tensorboard")
    writer.begin(first_step=0)
    writer.write({"step": 1, "loss": 2.5}, time=0.0)
    writer.flush()
    assert read_metrics(path) == {1: {"step": 1, "loss": 2.5}}
    assert scalars(read_tensorboard(tmp_path / "tensorboard"), "train/loss") == [(1, 2.5)]
    writer.close()
