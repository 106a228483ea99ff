"""What a named run is, and what the pretraining runs of published models have in common."""

from dataclasses import dataclass
from typing import Any

from configs.data import DataConfig
from configs.model import ModelConfig
from configs.run import CheckpointConfig, EvalConfig, OptimConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A named run; calling it returns its settings."""

    description: str
    """What it is, its parameters and what it costs."""
    run: RunConfig

    def __call__(self) -> RunConfig:
        """Returns its settings."""
        return self.run


def published(
    description: str,
    model: ModelConfig,
    *,
    sequence_len: int,
    batch_size: int,
    num_steps: int,
    peak_lr: float,
    **data: Any,
) -> Preset:
    """Returns a run on rows of sequence_len tokens, with a cosine after 2000 steps of warmup."""
    assert isinstance(model.vocab_size, int)
    run = RunConfig(
        model=model,
        data=DataConfig(sequence_len=sequence_len, vocab_size=model.vocab_size, **data),
        optim=OptimConfig(peak_lr=peak_lr, num_warmup_steps=2000),
        train=TrainConfig(num_steps=num_steps, batch_size=batch_size),
        checkpoint=CheckpointConfig(every_steps=500, keep_every_steps=10_000),
        eval=EvalConfig(every_steps=1000),
    )
    return Preset(description, run)
