"""Named runs. Each says what it costs and what to expect; a variant worth keeping is a preset."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from configs.data import STDLIB, DataConfig
from configs.model import ModelConfig
from configs.run import (
    CheckpointConfig,
    EvalConfig,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)


def quickstart() -> RunConfig:
    """A small Qwen3-shaped decoder on the text that comes with Python, for a first look.

    2.0 M parameters, 1.2 M tokens, 3 minutes on 2 CPU cores. It ends near 1.65 bits per byte on
    the held-out files and writes text that looks like Python from afar.
    """
    return RunConfig(
        model=ModelConfig(
            num_layers=4,
            embed_dim=192,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=512,
            qk_norm=True,
            rope_theta=10_000.0,
            dtype="float32",
            num_unrolled_layers=4,
        ),
        data=DataConfig(path=STDLIB, sequence_len=128, vocab_size=2048),
        optim=OptimConfig(
            peak_lr=4e-3, num_warmup_steps=50, schedule="linear", final_lr_fraction=0.0
        ),
        train=TrainConfig(num_steps=600, batch_size=16),
        checkpoint=CheckpointConfig(every_steps=100),
        eval=EvalConfig(every_steps=200, batch_size=32),
        sample=SampleConfig(
            every_steps=200, prompts=("def ", "class ", "The "), num_tokens=96, top_k=40
        ),
    )


def quickstart_moe() -> RunConfig:
    """The quickstart with eight experts a layer, of which two compute a token, and one for all.

    5.0 M parameters, 2.1 M of them for a token. Expect the least and the most loaded expert
    (moe/load) to stay between half and twice the mean.
    """
    run = quickstart()
    model = replace(
        run.model,
        mlp_dim=512,
        num_experts=8,
        num_active_experts=2,
        expert_dim=192,
        num_shared_experts=1,
        router_z_weight=1e-3,
    )
    return replace(run, model=model)


def quickstart_lstm() -> RunConfig:
    """An LSTM on the text of the quickstart: what attention is compared with.

    2.1 M parameters.
    """
    run = quickstart()
    model = ModelConfig(
        architecture="lstm", num_layers=2, embed_dim=320, dtype="float32", init_std=0.05
    )
    return replace(run, model=model, optim=replace(run.optim, peak_lr=2e-3))


def quickstart_bert() -> RunConfig:
    """A small BERT on the text of the quickstart: hidden tokens, and whether a text follows.

    2.0 M parameters. The loss is that of hidden tokens alone; the other is next_sentence/loss.
    """
    run = quickstart()
    model = replace(
        _bert_model(num_layers=4, embed_dim=192, num_heads=6, vocab_size="tokenizer"),
        num_positions=128,
        dropout=0.0,
        attention_dropout=0.0,
        norm_place="input",
        dtype="float32",
        num_unrolled_layers=4,
    )
    data = replace(run.data, objective="masked_pairs", special_tokens=("masked",))
    return replace(run, model=model, data=data, optim=replace(run.optim, peak_lr=2e-3))


def quickstart_t5() -> RunConfig:
    """A small T5 on the text of the quickstart: spans are hidden, and found by the decoder.

    2.2 M parameters.
    """
    run = quickstart()
    model = ModelConfig(
        architecture="encoder_decoder",
        num_encoder_layers=3,
        num_layers=3,
        embed_dim=160,
        num_heads=5,
        num_kv_heads=5,
        head_dim=32,
        mlp_dim=416,
        position="relative",
        mlp="geglu_tanh",
        dtype="float32",
        num_unrolled_layers=3,
    )
    data = replace(run.data, objective="span", target_len=40, special_tokens=("span",))
    return replace(run, model=model, data=data)


def shakespeare_cpu() -> RunConfig:
    """nanoGPT's published setting for a laptop: characters of tiny Shakespeare (give --data.path).

    0.8 M parameters, 1.5 M tokens, 1.6 minutes on 2 CPU cores. Expect 1.90 nats per character on
    the whole validation split (three seeds: 1.897, 1.900, 1.905; nanoGPT as published: 1.898).
    """
    return RunConfig(
        model=_nanogpt(num_layers=4, num_heads=4, embed_dim=128, num_positions=64),
        data=DataConfig(sequence_len=64, tokenizer="characters"),
        optim=OptimConfig(peak_lr=1e-3, num_warmup_steps=100, b2=0.99),
        train=TrainConfig(num_steps=2000, batch_size=12),
        checkpoint=CheckpointConfig(every_steps=500),
        eval=EvalConfig(every_steps=500, batch_size=48),
        sample=SampleConfig(every_steps=1000, prompts=("\n",), num_tokens=200, top_k=None),
    )


def shakespeare_gpu() -> RunConfig:
    """nanoGPT's published setting for one GPU: characters of tiny Shakespeare (give --data.path).

    10.6 M parameters, 82 M tokens, a few minutes on one recent GPU. nanoGPT publishes 1.47 nats
    per character, its best evaluation; the text is small, so later evaluations get worse again.
    """
    return RunConfig(
        model=_nanogpt(
            num_layers=6,
            num_heads=6,
            embed_dim=384,
            num_positions=256,
            dropout=0.2,
            attention_dropout=0.2,
            dtype="bfloat16",
        ),
        data=DataConfig(sequence_len=256, tokenizer="characters"),
        optim=OptimConfig(peak_lr=1e-3, num_warmup_steps=100, b2=0.99),
        train=TrainConfig(num_steps=5000, batch_size=64),
        checkpoint=CheckpointConfig(every_steps=250),
        eval=EvalConfig(every_steps=250),
        sample=SampleConfig(every_steps=1000, prompts=("\n",), num_tokens=200, top_k=None),
    )


def gpt2_124m() -> RunConfig:
    """GPT-2 small at its published shape, on text of your own.

    124 M parameters, 0.5 M tokens a step, 10 B tokens: about 2 hours on 8 H100, a day on one.
    Give data.tokenizer the path of a model with 50257 pieces, or set model.vocab_size to its size.
    """
    return RunConfig(
        model=ModelConfig(
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            num_kv_heads=12,
            head_dim=64,
            mlp_dim=3072,
            vocab_size=50257,
            norm="layer",
            norm_epsilon=1e-5,
            position="learned",
            num_positions=1024,
            mlp="gelu_tanh",
            bias=True,
        ),
        data=DataConfig(sequence_len=1024, vocab_size=50257),
        optim=OptimConfig(peak_lr=6e-4, num_warmup_steps=700),
        train=TrainConfig(num_steps=19_073, batch_size=512, num_microbatches=8),
        checkpoint=CheckpointConfig(every_steps=1000, keep_every_steps=5000),
        eval=EvalConfig(every_steps=1000, batch_size=64),
    )


def llama_1b() -> RunConfig:
    """Llama 3.2's 1B shape, without its rotary scaling.

    1.24 B parameters (0.97 B of them in layers), 0.5 M tokens a step, 25 B tokens: Chinchilla's 20
    a parameter. About 2 days on 8 H100.
    """
    return _llama3(
        model=_llama3_model(
            num_layers=16, embed_dim=2048, num_heads=32, head_dim=64, mlp_dim=8192, tied_head=True
        ),
        peak_lr=3e-4,
        num_steps=47_684,
        batch_size=64,
    )


def llama3_8b() -> RunConfig:
    """Llama 3 8B at its published shape: 8,030,261,248 parameters, context 8192.

    160 B tokens are 20 a parameter: 7.7e21 FLOP, about 10 days on 64 v5p chips at half their peak.
    """
    return _llama3(
        model=_llama3_model(
            num_layers=32, embed_dim=4096, num_heads=32, head_dim=128, mlp_dim=14_336
        ),
        peak_lr=3e-4,
        num_steps=38_147,
        batch_size=512,
    )


def llama3_70b() -> RunConfig:
    """Llama 3 70B at its published shape: 70,553,706,496 parameters, context 8192.

    1.4 T tokens are 20 a parameter: 6e23 FLOP, about 50 days on 1024 v5p chips at half their peak.
    """
    return _llama3(
        model=_llama3_model(
            num_layers=80, embed_dim=8192, num_heads=64, head_dim=128, mlp_dim=28_672
        ),
        peak_lr=1.5e-4,
        num_steps=166_893,
        batch_size=1024,
    )


def mixtral_8x7b() -> RunConfig:
    """Mixtral 8x7B at its published shape: 46,702,792,704 parameters, two of eight experts a token.

    Rows are of 8192 tokens, where the paper's are of 32768. 255 B tokens are 20 for each of the
    12.7 B parameters that compute one: 2.2e22 FLOP, about 18 days on 64 v5p chips at half their
    peak. Source: Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, table 1.
    """
    return RunConfig(
        model=ModelConfig(
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=14_336,
            vocab_size=32_000,
            norm_epsilon=1e-5,
            rope_theta=1e6,
            num_experts=8,
            num_active_experts=2,
            tied_head=False,
            remat="full",
        ),
        data=DataConfig(sequence_len=8192, vocab_size=32_000),
        optim=OptimConfig(peak_lr=3e-4, num_warmup_steps=2000),
        train=TrainConfig(num_steps=60_797, batch_size=512),
        checkpoint=CheckpointConfig(every_steps=500, keep_every_steps=10_000),
        eval=EvalConfig(every_steps=1000),
    )


def _nanogpt(
    *,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    num_positions: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    dtype: str = "float32",
) -> ModelConfig:
    assert dtype in ("bfloat16", "float32")
    return ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
        norm="layer",
        norm_epsilon=1e-5,
        position="learned",
        num_positions=num_positions,
        mlp="gelu",
        dropout=dropout,
        attention_dropout=attention_dropout,
        dtype=dtype,
        num_unrolled_layers=num_layers,
    )


def _bert_model(
    *, num_layers: int, embed_dim: int, num_heads: int, vocab_size: int | Literal["tokenizer"]
) -> ModelConfig:
    return ModelConfig(
        architecture="encoder",
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=embed_dim // num_heads,
        mlp_dim=4 * embed_dim,
        vocab_size=vocab_size,
        norm="layer",
        norm_place="residual",
        norm_epsilon=1e-12,
        position="learned",
        num_positions=512,
        num_token_types=2,
        embed_norm=True,
        mlp="gelu",
        bias=True,
        head_transform=True,
        head_bias=True,
        next_sentence=True,
        dropout=0.1,
        attention_dropout=0.1,
    )


def _llama3_model(
    *,
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    tied_head: bool = False,
) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        vocab_size=128_256,
        norm_epsilon=1e-5,
        rope_theta=500_000.0,
        tied_head=tied_head,
        remat="full",
    )


def _llama3(*, model: ModelConfig, peak_lr: float, num_steps: int, batch_size: int) -> RunConfig:
    return RunConfig(
        model=model,
        data=DataConfig(sequence_len=8192, vocab_size=128_256),
        optim=OptimConfig(peak_lr=peak_lr, num_warmup_steps=2000),
        train=TrainConfig(num_steps=num_steps, batch_size=batch_size),
        checkpoint=CheckpointConfig(every_steps=500, keep_every_steps=10_000),
        eval=EvalConfig(every_steps=1000),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    preset.__name__: preset
    for preset in (
        quickstart,
        quickstart_bert,
        quickstart_lstm,
        quickstart_moe,
        quickstart_t5,
        shakespeare_cpu,
        shakespeare_gpu,
        gpt2_124m,
        llama_1b,
        llama3_8b,
        llama3_70b,
        mixtral_8x7b,
    )
}
