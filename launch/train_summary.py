"""What `./tessera train` prints first and last: what it trains on what, and the results."""

from typing import TYPE_CHECKING

from configs.counts import count
from configs.data import STDLIB
from configs.run import RunConfig
from configs.suggested_commands import seen
from launch.next_commands import generate_hint, look_hints
from train.record.eta import duration

if TYPE_CHECKING:
    from data.mixture import Data
    from train.loop import Outcome
    from train.record.run_folder import RunFolder

_NUM_SAMPLE_LINES = 12


def opening_summary(folder: "RunFolder", config: RunConfig, data: "Data", mesh) -> str:
    """Returns what a run is, before its first step."""
    counts = count(config.model, config.data.sequence_len, config.data.target_len)
    own = " (it comes with Python, and differs a little between machines)"
    return (
        f"run folder: {seen(folder.path)}\n"
        f"training data: {_data_text(folder, config, data)}"
        f"{own if config.data.path == STDLIB else ''}\n"
        f"model: {counts.total / 1e6:.2f} M parameters; FLOPs per token: "
        f"{counts.flops_causal / 1e6:.1f} M causal, {counts.flops_full / 1e6:.1f} M full "
        f"(N = {counts.matmul / 1e6:.2f} M in matmuls)\n"
        f"devices: {_device_text(config, mesh)}\n"
        f"batch: {config.train.batch_size} x {config.data.sequence_len} tokens, "
        f"{config.train.num_steps} steps"
    )


def _device_text(config: RunConfig, mesh) -> str:
    """Returns the mesh, and the pipeline's bubble where there are stages."""
    from sharding.pipeline import pipeline_of

    cuts = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    words = f"{mesh.size} x {mesh.devices.flat[0].device_kind}{cuts and f' ({cuts})'}"
    pipeline = pipeline_of(config, mesh)
    if pipeline.num_stages == 1:
        return words
    return (
        f"{words}\npipeline: {pipeline.num_microbatches} microbatches through "
        f"{pipeline.num_stages} stages of {pipeline.num_groups} groups of layers; bubble "
        f"{pipeline.bubble_fraction:.1%} of the time"
    )


def _data_text(folder: "RunFolder", config: RunConfig, data: "Data") -> str:
    """Returns what is read and how often; sequences of all sources have one length."""
    from data.batches import TrainRows, continue_ranges
    from data.step_ranges import steps_from
    from train.checkpoints.folders import newest_progress

    progress = newest_progress(folder.checkpoints)
    ranges = progress.step_ranges if progress else ()
    new = steps_from(config, progress.step if progress else 0)
    steps = continue_ranges(ranges, new, data, config.data).ranges[-1]
    sequence = TrainRows(data, config.data, steps)
    counts = sequence.schedule.counts(steps.row(config.train.num_steps))
    epochs = [count / len(rows) for count, rows in zip(counts, sequence.rows, strict=True)]
    if not data.is_mixture:
        return f"{config.data.path}, {epochs[0]:.3g} epochs"
    return ", ".join(
        f"{name} {count / sum(counts):.1%} ({epoch:.3g} epochs)"
        for (name, _), count, epoch in zip(data.sources, counts, epochs, strict=True)
    )


def closing_summary(
    folder: "RunFolder", config: RunConfig, preset: str, outcome: "Outcome", seconds: float
) -> str:
    """Returns what came of a run that has finished, now or before it was started again."""
    record, path = outcome.record, folder.path
    lines = []
    sample = folder.sample_of(record["step"])
    if sample.exists():
        texts = sample.read_text(encoding="utf-8").splitlines()
        whole = f"; all of them: {seen(sample)}" if len(texts) > _NUM_SAMPLE_LINES else ""
        lines.append(f"samples of step {record['step']}{whole}")
        lines += [f"  | {line}" for line in texts[:_NUM_SAMPLE_LINES]]
    if "eval/loss" in record:
        bits = record["eval/bits_per_byte"]
        lines.append(
            f"validation: {record['eval/loss']:.4f} nats per token, "
            f"{'' if bits is None else f'{bits:.3f} bits per byte, '}"
            f"on {record['eval/tokens']:,} tokens"
        )
    lines.append(f"run folder: {seen(path)} (metrics.jsonl, events.jsonl, checkpoints/, samples/)")
    lines += ["to look closer:", *(f"  {line}" for line in look_hints(path, config, preset))]
    steps = f"{record['step']} steps, {record['tokens']:,} tokens"
    if outcome.was_finished:
        ending = f"nothing was left to do: the run had finished {steps} before"
    else:
        ending = f"finished {steps}, in {duration(seconds)}"
    return "\n".join([*lines, f"{ending}; next step: {generate_hint(path, config)}"])
