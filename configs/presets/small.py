"""Small runs, of minutes on a CPU or one GPU. Each says what it costs and what to expect."""

from dataclasses import replace

from configs.data import STDLIB, DataConfig
from configs.model import ModelConfig
from configs.presets.encoders import bert, t5
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
    """The quickstart with eight experts a layer, of which two compute a token.

    4.3 M parameters, 1.7 M of them for a token, 4 minutes on 2 CPU cores. It ends near 1.66 bits
    per byte; from step 200 on the least and the most loaded expert (moe/load_least and
    moe/load_most) have between 0.6 and 1.5 times the mean.
    """
    run = quickstart()
    model = replace(
        run.model,
        mlp_dim=512,
        num_experts=8,
        num_active_experts=2,
        expert_dim=192,
        router_z_weight=1e-3,
    )
    return replace(run, model=model)


def quickstart_lstm() -> RunConfig:
    """An LSTM on the text of the quickstart: what attention is compared with.

    2.1 M parameters, 4 minutes on 2 CPU cores. It ends near 4.1 nats per token, 2.1 bits per byte,
    where the quickstart has 3.2 and 1.65.
    """
    run = quickstart()
    model = ModelConfig(
        architecture="lstm", num_layers=2, embed_dim=320, dtype="float32", init_std=0.05
    )
    return replace(run, model=model, optim=replace(run.optim, peak_lr=2e-3))


def quickstart_bert() -> RunConfig:
    """A small BERT on the text of the quickstart: hidden tokens, and whether a text follows.

    1.1 M parameters, 5 minutes on 2 CPU cores. The loss is that of hidden tokens alone: it ends
    near 4.9 nats, where the frequencies of tokens alone give 5.5. The other is next_sentence/loss.
    """
    run = quickstart()
    model = replace(
        bert(L=4, D=128, N=4, vocab_size="tokenizer"),
        num_positions=128,
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
        init_std=0.05,
    )
    data = replace(run.data, objective="masked_pairs", mask_rate=0.25, special_tokens=("masked",))
    return replace(
        run,
        model=model,
        data=data,
        optim=replace(run.optim, peak_lr=1e-3),
        train=replace(run.train, num_steps=1500),
        eval=replace(run.eval, every_steps=300),
        sample=replace(
            run.sample, prompts=("def [MASK](self):", "import [MASK]", "return [MASK].[MASK]")
        ),
    )


def quickstart_t5() -> RunConfig:
    """A small T5 on the text of the quickstart: spans are hidden, and found by the decoder.

    1.5 M parameters, 4 minutes on 2 CPU cores. It ends near 3.8 nats per token of the spans, where
    the frequencies of these tokens alone give 5.2.
    """
    run = quickstart()
    sizes = t5(L=2, D=128, N=4, F=352, vocab_size="tokenizer")
    prompts = ("def <extra_id_0>(self):", "import <extra_id_0>\n", "return <extra_id_0>\n")
    return replace(
        run,
        model=replace(sizes, head_dim=32, dtype="float32", init_std=0.05),
        data=replace(run.data, objective="span", target_len=40, special_tokens=("span",)),
        optim=replace(run.optim, peak_lr=2e-3),
        train=replace(run.train, num_steps=1500),
        eval=replace(run.eval, every_steps=300),
        sample=replace(run.sample, prompts=prompts),
    )


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
    )
