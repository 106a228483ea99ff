"""What pretraining runs of published models have in common."""

from typing import Any

from configs.data import DataConfig
from configs.model import ModelConfig
from configs.run import CheckpointConfig, EvalConfig, OptimConfig, RunConfig, TrainConfig


def pretrain(
    model: ModelConfig,
    *,
    sequence_len: int,
    batch_size: int,
    num_steps: int,
    peak_lr: float,
    **data: Any,
) -> RunConfig:
    """Returns a run on rows of sequence_len tokens, with a cosine after 2000 steps of warmup."""
    assert isinstance(model.vocab_size, int)
    return RunConfig(
        model=model,
        data=DataConfig(sequence_len=sequence_len, vocab_size=model.vocab_size, **data),
        optim=OptimConfig(peak_lr=peak_lr, num_warmup_steps=2000),
        train=TrainConfig(num_steps=num_steps, batch_size=batch_size),
        checkpoint=CheckpointConfig(every_steps=500, keep_every_steps=10_000),
        eval=EvalConfig(every_steps=1000),
    )
