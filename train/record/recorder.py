"""Turns the metrics of each step into records with counts and speeds, and runs the guard."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from configs.counts import count
from configs.peak_flops import peak_flops
from train.checkpoints.manifest import RunProgress
from train.health.divergence import Divergence, Guard
from train.record.console import Display, logger
from train.record.metrics_writer import MetricsWriter, shortest
from train.record.run_folder import Record
from train.run_context import RunContext
from train.step import Metrics


class Recorder:
    """Reads the metrics of a step while the next one runs, and writes those of logged steps.

    `tokens` counts the tokens of all steps so far as a host integer. Speeds are means since the
    last record, without evaluation, sampling and waiting for saves.
    """

    def __init__(self, run: RunContext, writer: MetricsWriter, display: Display):
        config = run.config
        self._run, self._config = run, config
        self._writer = writer
        self._display = display
        self._bits_per_nat: float | None = None
        if config.data.objective == "causal":
            self._bits_per_nat = 1 / math.log(2) / run.data.bytes_per_token(config.data)
        self._counts = count(config.model, config.data.sequence_len, config.data.target_len)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()
        self.step_sec = self.data_wait_sec = 0.0
        """Seconds per step in the last record, and those of them without a batch."""

    def begin(self, start: RunProgress) -> None:
        """Starts after a step: that of a checkpoint, or 0."""
        self.start, self.tokens = start, start.tokens
        self.guard = Guard(self._config.guard, start.guard)
        self.divergence: Divergence | None = None
        """What the run must be rolled back before."""
        self._pending: tuple[int, Metrics, float | None] | None = None
        self._paused_at: float | None = None
        self._restart_clock(time.perf_counter())

    @property
    def is_suspect(self) -> bool:
        """Whether the last step was nonfinite or high, but the run has not diverged yet."""
        return self.divergence is None and self.guard.is_suspect

    def _restart_clock(self, now: float) -> None:
        self._since, self._steps = now, 0
        self._step_tokens, self._data_wait = 0, 0.0

    def _now(self) -> float:
        return time.perf_counter() if self._paused_at is None else self._paused_at

    def add(self, step: int, metrics: Metrics, data_wait_sec: float) -> None:
        """Adds the metrics of a step that was started, and finishes the step before it."""
        # A CPU may run a step inside the call that starts it: then it ended just now.
        flag: Any = metrics.finite  # is_ready is missing from the type
        ended_at = time.perf_counter() if flag.is_ready() else None
        self.finish()
        self._pending = (step, metrics, ended_at)
        self._data_wait += data_wait_sec

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the last step; time inside does not count for the speeds."""
        if self._pending is not None:
            with self._run.spans("end of a step"):
                jax.block_until_ready(self._pending[1])
            self._display.show_step(self._pending[0])
        self._paused_at = time.perf_counter()
        yield
        self._since += time.perf_counter() - self._paused_at
        self._paused_at = None

    def finish(self, extra: Record | None = None) -> None:
        """Finishes the last step that was added; `extra` (an evaluation) joins its record."""
        if self._pending is None:
            return
        step, metrics, ended_at = self._pending
        self._pending = None
        layer_norms = metrics.layer_norms  # they stay on the devices unless they are needed
        metrics = jax.device_get(metrics._replace(layer_norms={}))
        # If the step before was observed to end later than that, this one is taken to end now.
        now = ended_at if ended_at is not None and ended_at > self._since else self._now()
        self.tokens += int(metrics.num_tokens)
        self._step_tokens += int(metrics.num_tokens)
        self._steps += 1
        self._display.show_step(step)
        self._guard(step, metrics, layer_norms)
        train = self._config.train
        is_logged = step % train.log_every_steps == 0 or step == train.num_steps
        if extra is not None or is_logged:
            self._write(step, metrics, extra or {}, now)

    def _guard(self, step: int, metrics: Metrics, layer_norms: dict[str, jax.Array]) -> None:
        finite, steps = bool(metrics.finite), self.start.step_ranges[-1]
        layers = {} if finite else largest_gradient_norms(layer_norms)
        if not finite:
            logger.warning(
                f"step {step} is nonfinite, its update is left out: loss {metrics.loss}, gradient "
                f"norm {metrics.grad_norm}"
            )
            self._run.folder.add_event(
                "nonfinite_step",
                step=step,
                rows=steps.rows(step - 1),
                loss=str(metrics.loss),
                grad_norm=str(metrics.grad_norm),
                layers=layers,
            )
        weights = steps.weights_at(steps.row(step - 1))
        divergence = self.guard.check(step, float(metrics.loss), finite, weights)
        if divergence is not None and self.divergence is None:
            layers = layers or largest_gradient_norms(layer_norms)
            self.divergence = dataclasses.replace(divergence, layers=layers)

    def _write(self, step: int, metrics: Metrics, extra: Record, now: float) -> None:
        seconds = now - self._since
        self.step_sec, self.data_wait_sec = seconds / self._steps, self._data_wait / self._steps
        speed = self._step_tokens / seconds
        loss = shortest(metrics.loss)
        stats = jax.local_devices()[0].memory_stats() or {}
        self._run.spans.settle()
        record: Record = {
            "step": step,
            "tokens": self.tokens,
            "loss": loss,
            "bits_per_byte": self._bits_per_nat and (loss and loss * self._bits_per_nat),
            "grad_norm": shortest(metrics.grad_norm),
            "learning_rate": shortest(metrics.learning_rate),
            "tokens_per_second": speed,
            "step_sec": self.step_sec,
            "data_wait_sec": self.data_wait_sec,
            "mfu_causal": self._peak and speed * self._counts.flops_causal / self._peak,
            "mfu_full": self._peak and speed * self._counts.flops_full / self._peak,
            "device_memory_bytes": stats.get("peak_bytes_in_use"),
            **_aux_record(metrics.aux_metrics),
            **self._run.spans.ledger.record(),
            **extra,
        }
        self._writer.write(record, time.time())
        self._display.show_record(record)
        self._restart_clock(now)


def _aux_record(aux_metrics: dict[str, Any]) -> Record:
    """Returns the metrics by name; an array (one value per expert) also as its least and most."""
    record: Record = {}
    for name, value in aux_metrics.items():
        values = np.asarray(value)
        if values.ndim == 0:
            record[name] = shortest(value)
            continue
        record |= {f"{name}_least": shortest(values.min()), f"{name}_most": shortest(values.max())}
        record |= {f"{name}/{i}": shortest(x) for i, x in enumerate(values)}
    return record


def largest_gradient_norms(layer_norms: dict[str, Any], num: int = 8) -> dict[str, str]:
    """Returns the nonfinite gradient norms by name, or if all are finite the largest ones.

    Names are "path", or "path[layer]" for an array that is stacked over layers.
    """
    norms = {
        path if np.ndim(norm) == 0 else f"{path}[{layer}]": float(value)
        for path, norm in layer_norms.items()
        for layer, value in enumerate(np.atleast_1d(np.asarray(norm)))
    }
    nonfinite = {name: value for name, value in norms.items() if not math.isfinite(value)}
    largest = sorted(norms, key=lambda name: norms[name], reverse=True)
    names = list(nonfinite) if nonfinite else largest
    return {name: f"{norms[name]:.4g}" for name in names[:num]}
