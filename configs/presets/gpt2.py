"""GPT-2 at its four published sizes; rows of 1024 tokens, half a million tokens a step.

Source: Radford et al. 2019, Language models are unsupervised multitask learners, table 2.
"""

from configs.data import DataConfig
from configs.model import ModelConfig
from configs.run import CheckpointConfig, EvalConfig, OptimConfig, RunConfig, TrainConfig


def gpt2_124m() -> RunConfig:
    """GPT-2 small at its published shape, on text of your own: 124,439,808 parameters.

    0.5 M tokens a step, 10 B tokens: about 2 hours on 8 H100, a day on one.
    Give data.tokenizer the path of a model with 50257 pieces, or set model.vocab_size to its size.
    """
    return _gpt2(num_layers=12, embed_dim=768, peak_lr=6e-4, num_microbatches=8)


def gpt2_355m() -> RunConfig:
    """GPT-2 medium at its published shape: 354,823,168 parameters.

    10 B tokens are 2e19 FLOP: about 5 hours on 8 H100.
    """
    return _gpt2(num_layers=24, embed_dim=1024, peak_lr=3e-4, num_microbatches=16)


def gpt2_774m() -> RunConfig:
    """GPT-2 large at its published shape: 774,030,080 parameters.

    10 B tokens are 5e19 FLOP: about 11 hours on 8 H100.
    """
    return _gpt2(num_layers=36, embed_dim=1280, peak_lr=2.5e-4, num_microbatches=32)


def gpt2_1558m() -> RunConfig:
    """GPT-2 XL at its published shape: 1,557,611,200 parameters.

    10 B tokens are 1e20 FLOP: about a day on 8 H100.
    """
    return _gpt2(num_layers=48, embed_dim=1600, peak_lr=2e-4, num_microbatches=64)


def _gpt2(*, num_layers: int, embed_dim: int, peak_lr: float, num_microbatches: int) -> RunConfig:
    model = ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=embed_dim // 64,
        num_kv_heads=embed_dim // 64,
        head_dim=64,
        mlp_dim=4 * embed_dim,
        vocab_size=50257,
        norm="layer",
        norm_epsilon=1e-5,
        position="learned",
        num_positions=1024,
        mlp="gelu_tanh",
        bias=True,
    )
    return RunConfig(
        model=model,
        data=DataConfig(sequence_len=1024, vocab_size=50257),
        optim=OptimConfig(peak_lr=peak_lr, num_warmup_steps=700),
        train=TrainConfig(num_steps=19_073, batch_size=512, num_microbatches=num_microbatches),
        checkpoint=CheckpointConfig(every_steps=1000, keep_every_steps=5000),
        eval=EvalConfig(every_steps=1000, batch_size=64),
    )
