"""Turns what the device says of each step into records: counts, speeds, and the guard."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from configs.counts import count
from configs.errors import Diverged
from configs.hardware import peak_flops
from configs.run import RunConfig
from train.log import Display, logger
from train.metrics import MetricsWriter, shortest
from train.run_folder import Record, RunFolder
from train.step import Metrics


class Recorder:
    """Reads the metrics of a step while the next one runs, and writes those of logged steps.

    `tokens` counts targets of all steps so far as a host integer. Speeds are means since the record
    before, without evaluation, sampling and waiting for saves.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        writer: MetricsWriter,
        display: Display,
        *,
        tokens: int,
        bytes_per_token: float,
    ):
        self.tokens = tokens
        self._config = config
        self._folder = folder
        self._writer = writer
        self._display = display
        self._bits_per_nat = 1 / math.log(2) / bytes_per_token
        self._counts = count(config.model, config.data.sequence_len)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()
        self._pending: tuple[int, Metrics, float | None] | None = None
        self._num_skipped = 0
        self._paused_at: float | None = None
        self._restart_clock(time.perf_counter())

    def _restart_clock(self, now: float) -> None:
        self._since, self._steps = now, 0
        self._step_tokens, self._data_wait = 0, 0.0

    def _now(self) -> float:
        return time.perf_counter() if self._paused_at is None else self._paused_at

    def add(self, step: int, metrics: Metrics, data_wait_sec: float) -> None:
        """Takes the metrics of a step that was started and finishes the one before it."""
        # A CPU may run a step inside the call that starts it: then it ended just now.
        flag: Any = metrics.finite  # is_ready is missing from the type
        ended_at = time.perf_counter() if flag.is_ready() else None
        self.finish()
        self._pending = (step, metrics, ended_at)
        self._data_wait += data_wait_sec

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the last step; what is done inside does not count for the speeds."""
        if self._pending is not None:
            jax.block_until_ready(self._pending[1])
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
        metrics = jax.device_get(metrics)
        now = self._now() if ended_at is None else ended_at
        self.tokens += int(metrics.num_tokens)
        self._step_tokens += int(metrics.num_tokens)
        self._steps += 1
        self._display.show_step(step)
        self._watch(step, metrics)
        if extra is not None or self.is_logged(step):
            self._write(step, metrics, extra or {}, now)

    def is_logged(self, step: int) -> bool:
        """Says whether a step has a line of its own in metrics.jsonl."""
        train = self._config.train
        return step % train.log_every_steps == 0 or step == train.num_steps

    def _watch(self, step: int, metrics: Metrics) -> None:
        if metrics.finite:
            self._num_skipped = 0
            return
        self._num_skipped += 1
        logger.warning(
            f"step {step} was skipped: loss {metrics.loss}, gradient norm {metrics.grad_norm}"
        )
        self._folder.add_event(
            "skipped", step=step, loss=str(metrics.loss), grad_norm=str(metrics.grad_norm)
        )
        if self._num_skipped >= self._config.guard.max_skipped_steps:
            raise Diverged(
                f"{self._num_skipped} steps in a row were not finite, as many as "
                f"guard.max_skipped_steps={self._config.guard.max_skipped_steps} allows; the last "
                "checkpoint is from before: try a lower optim.peak_lr in a new run"
            )

    def _write(self, step: int, metrics: Metrics, extra: Record, now: float) -> None:
        seconds = now - self._since
        speed = self._step_tokens / seconds
        loss = shortest(metrics.loss)
        stats = jax.local_devices()[0].memory_stats() or {}
        record: Record = {
            "step": step,
            "tokens": self.tokens,
            "loss": loss,
            "bits_per_byte": None if loss is None else loss * self._bits_per_nat,
            "grad_norm": shortest(metrics.grad_norm),
            "learning_rate": shortest(metrics.learning_rate),
            "tokens_per_second": speed,
            "step_sec": seconds / self._steps,
            "data_wait_sec": self._data_wait / self._steps,
            "mfu_causal": self._peak and speed * self._counts.flops_causal / self._peak,
            "mfu_full": self._peak and speed * self._counts.flops_full / self._peak,
            "device_memory_bytes": stats.get("peak_bytes_in_use"),
            **{name: shortest(value) for name, value in metrics.moe.items()},
            **extra,
        }
        self._writer.write(record, time.time())
        self._display.show_record(record)
        self._restart_clock(now)
