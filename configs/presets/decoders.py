"""Decoders at their published sizes: GPT-2, Llama, Mistral, Qwen3, Gemma 3 and mixtures of experts.

Letters are those of the settings: L layers, D width, N heads, K key/value heads, H width of a head,
F of the MLP, V vocabulary, B sequences per step. Source: Radford et al. 2019, Language models are
unsupervised multitask learners, table 2; Llama team 2024, The Llama 3 herd of models,
arXiv:2407.21783, table 3; Jiang et al. 2023, Mistral 7B, arXiv:2310.06825, table 1; Qwen team 2025,
Qwen3 technical report, arXiv:2505.09388, tables 1 and 2; Gemma team 2025, Gemma 3 technical report,
arXiv:2503.19786, tables 1 and 2.
"""

from typing import Any

from configs.data import DataConfig
from configs.model import ModelConfig
from configs.position import RopeScaling
from configs.presets.preset import Preset, published
from configs.run import CheckpointConfig, EvalConfig, OptimConfig, RunConfig, TrainConfig


def _gpt2(L: int, D: int, peak_lr: float, num_microbatches: int, description: str) -> Preset:
    model = ModelConfig(
        num_layers=L,
        embed_dim=D,
        num_heads=D // 64,
        num_kv_heads=D // 64,
        head_dim=64,
        mlp_dim=4 * D,
        vocab_size=50257,
        norm="layer",
        norm_epsilon=1e-5,
        position="learned",
        num_positions=1024,
        mlp="gelu_tanh",
        bias=True,
    )
    run = RunConfig(
        model=model,
        data=DataConfig(sequence_len=1024, vocab_size=50257),
        optim=OptimConfig(peak_lr=peak_lr, num_warmup_steps=700),
        train=TrainConfig(num_steps=19_073, batch_size=512, num_microbatches=num_microbatches),
        checkpoint=CheckpointConfig(every_steps=1000, keep_every_steps=5000),
        eval=EvalConfig(every_steps=1000, batch_size=64),
    )
    return Preset(description, run)


# L, D, peak learning rate, microbatches; half a million tokens a step
GPT2 = {
    "gpt2_124m": _gpt2(
        *(12, 768, 6e-4, 8),
        "GPT-2 small at its published shape, on text of your own: 124,439,808 parameters.\n\n"
        "0.5 M tokens a step, 10 B tokens: about 2 hours on 8 H100, a day on one. Give "
        "data.tokenizer the path of a model with 50257 pieces, or set model.vocab_size to its "
        "size.",
    ),
    "gpt2_355m": _gpt2(
        *(24, 1024, 3e-4, 16),
        "GPT-2 medium at its published shape: 354,823,168 parameters.\n\n"
        "10 B tokens are 2e19 FLOP: about 5 hours on 8 H100.",
    ),
    "gpt2_774m": _gpt2(
        *(36, 1280, 2.5e-4, 32),
        "GPT-2 large at its published shape: 774,030,080 parameters.\n\n"
        "10 B tokens are 5e19 FLOP: about 11 hours on 8 H100.",
    ),
    "gpt2_1558m": _gpt2(
        *(48, 1600, 2e-4, 64),
        "GPT-2 XL at its published shape: 1,557,611,200 parameters.\n\n"
        "10 B tokens are 1e20 FLOP: about a day on 8 H100.",
    ),
}


def _decoder(
    description: str,
    shape: tuple[int, int, int, int, int, int, int],
    run: tuple[int, int, int, float],
    **model: Any,
) -> Preset:
    """Returns a preset of the columns that stand above the tables below."""
    L, D, N, K, H, F, V = shape
    sequence_len, batch_size, num_steps, peak_lr = run
    return published(
        description,
        ModelConfig(
            num_layers=L,
            embed_dim=D,
            num_heads=N,
            num_kv_heads=K,
            head_dim=H,
            mlp_dim=F,
            vocab_size=V,
            remat="full",
            **model,
        ),
        sequence_len=sequence_len,
        batch_size=batch_size,
        num_steps=num_steps,
        peak_lr=peak_lr,
    )


_LLAMA3: dict[str, Any] = {"norm_epsilon": 1e-5, "rope_theta": 500_000.0}

LLAMA = {
    # L, D, N, K, H, F, V; length of a row, B, steps, peak learning rate
    "llama_1b": _decoder(
        "Llama 3.2's 1B shape, with its rotary scaling: 1,235,814,400 parameters.\n\n"
        "0.97 B of them are in layers; 0.5 M tokens a step, 25 B tokens: Chinchilla's 20 a "
        "parameter. About 2 days on 8 H100.",
        (16, 2048, 32, 8, 64, 8192, 128_256),
        (8192, 64, 47_684, 3e-4),
        **_LLAMA3,
        rope_scaling=RopeScaling(kind="llama3", factor=32.0, original_len=8192),
    ),
    "llama3_8b": _decoder(
        "Llama 3 8B at its published shape: 8,030,261,248 parameters, context 8192.\n\n"
        "160 B tokens are 20 a parameter: 7.7e21 FLOP, about 10 days on 64 v5p chips at half "
        "their peak.",
        (32, 4096, 32, 8, 128, 14_336, 128_256),
        (8192, 512, 38_147, 3e-4),
        **_LLAMA3,
        tied_embeddings=False,
    ),
    "llama3_70b": _decoder(
        "Llama 3 70B at its published shape: 70,553,706,496 parameters, context 8192.\n\n"
        "1.4 T tokens are 20 a parameter: 6e23 FLOP, about 50 days on 1024 v5p chips at half "
        "their peak.",
        (80, 8192, 64, 8, 128, 28_672, 128_256),
        (8192, 1024, 166_893, 1.5e-4),
        **_LLAMA3,
        tied_embeddings=False,
    ),
    "llama3_405b": _decoder(
        "Llama 3.1 405B at its published shape: 405,853,388,800 parameters, before its long "
        "contexts.\n\n"
        "8.1 T tokens are 20 a parameter: 2e25 FLOP, about 100 days on 16,384 v5p chips at half "
        "their peak.",
        (126, 16_384, 128, 8, 128, 53_248, 128_256),
        (8192, 2048, 482_797, 8e-5),
        **_LLAMA3,
        tied_embeddings=False,
    ),
    "mistral_7b": _decoder(
        "Mistral 7B at its published shape: 7,241,732,096 parameters, a window of 4096 tokens.\n\n"
        "145 B tokens are 20 a parameter: 6.3e21 FLOP, about 8 days on 64 v5p chips at half "
        "their peak.",
        (32, 4096, 32, 8, 128, 14_336, 32_000),
        (8192, 512, 34_571, 3e-4),
        norm_epsilon=1e-5,
        attention_window=4096,
        tied_embeddings=False,
    ),
}

_QWEN3: dict[str, Any] = {"rope_theta": 1e6, "qk_norm": True}

QWEN = {
    # The columns of LLAMA; 20 tokens a parameter.
    "qwen3_0_6b": _decoder(
        "Qwen3 0.6B at its published shape: 596,049,920 parameters.\n\n12 B tokens, 4.3e+19 FLOP.",
        (28, 1024, 16, 8, 128, 3072, 151_936),
        (4096, 256, 11_369, 5e-4),
        **_QWEN3,
    ),
    "qwen3_1_7b": _decoder(
        "Qwen3 1.7B at its published shape: 1,720,574,976 parameters.\n\n"
        "34 B tokens, 3.6e+20 FLOP.",
        (28, 2048, 16, 8, 128, 6144, 151_936),
        (4096, 512, 16_409, 4e-4),
        **_QWEN3,
    ),
    "qwen3_4b": _decoder(
        "Qwen3 4B at its published shape: 4,022,468,096 parameters.\n\n80 B tokens, 1.9e+21 FLOP.",
        (36, 2560, 32, 8, 128, 9728, 151_936),
        (4096, 512, 38_361, 3e-4),
        **_QWEN3,
    ),
    "qwen3_8b": _decoder(
        "Qwen3 8B at its published shape: 8,190,735,360 parameters.\n\n164 B tokens, 8.1e+21 FLOP.",
        (36, 4096, 32, 8, 128, 12_288, 151_936),
        (4096, 1024, 39_056, 3e-4),
        **_QWEN3,
        tied_embeddings=False,
    ),
    "qwen3_14b": _decoder(
        "Qwen3 14B at its published shape: 14,768,307,200 parameters.\n\n"
        "295 B tokens, 2.6e+22 FLOP.",
        (40, 5120, 40, 8, 128, 17_408, 151_936),
        (4096, 1024, 70_421, 2e-4),
        **_QWEN3,
        tied_embeddings=False,
    ),
    "qwen3_32b": _decoder(
        "Qwen3 32B at its published shape: 32,762,123,264 parameters.\n\n"
        "655 B tokens, 1.3e+23 FLOP.",
        (64, 5120, 64, 8, 128, 25_600, 151_936),
        (4096, 2048, 78_111, 1.5e-4),
        **_QWEN3,
        tied_embeddings=False,
    ),
    "qwen3_30b_a3b": _decoder(
        "Qwen3 30B-A3B at its published shape: 30,532,122,624 parameters, 3.3 B of them for a "
        "token.\n\n"
        "Eight of 128 experts compute a token. 67 B tokens are 20 for each of those: 1.3e21 "
        "FLOP.",
        (48, 2048, 32, 4, 128, 6144, 151_936),
        (4096, 1024, 15_974, 3e-4),
        **_QWEN3,
        tied_embeddings=False,
        num_experts=128,
        num_active_experts=8,
        expert_dim=768,
    ),
}

_GEMMA3: dict[str, Any] = {
    "norm_placement": "sandwich",
    "norm_zero_centered": True,
    "embed_scaled": True,
    "mlp": "geglu_tanh",
    "qk_norm": True,
    "attention_pattern": ("local",) * 5 + ("global",),
    "rope_theta": 1e6,
    "rope_theta_local": 10_000.0,
}

GEMMA = {
    # The columns of LLAMA; 20 tokens a parameter.
    "gemma3_1b": _decoder(
        "Gemma 3 1B at its published shape: 999,885,952 parameters.\n\n20 B tokens, 1.2e+20 FLOP.",
        (26, 1152, 4, 1, 256, 6912, 262_144),
        (8192, 128, 19_071, 4e-4),
        **_GEMMA3,
        attention_window=512,
        attention_scale=256**-0.5,
    ),
    "gemma3_4b": _decoder(
        "Gemma 3 4B at its published shape: 3,880,263,168 parameters.\n\n"
        "78 B tokens, 1.8e+21 FLOP.",
        (34, 2560, 8, 4, 256, 10_240, 262_208),
        (8192, 256, 37_005, 3e-4),
        **_GEMMA3,
        attention_window=1024,
        attention_scale=256**-0.5,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    ),
    "gemma3_12b": _decoder(
        "Gemma 3 12B at its published shape: 11,766,034,176 parameters.\n\n"
        "235 B tokens, 1.7e+22 FLOP.",
        (48, 3840, 16, 8, 256, 15_360, 262_208),
        (8192, 512, 56_105, 2e-4),
        **_GEMMA3,
        attention_window=1024,
        attention_scale=256**-0.5,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    ),
    "gemma3_27b": _decoder(
        "Gemma 3 27B at its published shape: 27,009,346,304 parameters.\n\n"
        "540 B tokens, 8.8e+22 FLOP.",
        (62, 5376, 32, 16, 128, 21_504, 262_208),
        (8192, 1024, 64_395, 1.5e-4),
        **_GEMMA3,
        attention_window=1024,
        attention_scale=168**-0.5,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    ),
}

EXPERTS = {
    # The columns of LLAMA.
    "mixtral_8x7b": _decoder(
        "Mixtral 8x7B at its published shape: 46,702,792,704 parameters, two of eight experts a "
        "token.\n\n"
        "Rows are of 8192 tokens, where the paper's are of 32768. 255 B tokens are 20 for each "
        "of the 12.7 B parameters that compute one: 2.2e22 FLOP, about 18 days on 64 v5p chips "
        "at half their peak. Source: Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, "
        "table 1.",
        (32, 4096, 32, 8, 128, 14_336, 32_000),
        (8192, 512, 60_797, 3e-4),
        norm_epsilon=1e-5,
        rope_theta=1e6,
        num_experts=8,
        num_active_experts=2,
        tied_embeddings=False,
    ),
    "deepseek_v3": _decoder(
        "DeepSeek-V3 at its published shape: 671,026,419,200 parameters, 37 B of them for a "
        "token.\n\n"
        "Rows are of 4096 tokens. 750 B tokens are 20 for each of the 37 B: 1.7e23 FLOP, where "
        "the paper took 14.8 T. Without its prediction of a second token, which model.mtp_depth "
        "adds. Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 4.2.",
        (61, 7168, 128, 128, 128, 18_432, 129_280),
        (4096, 4096, 44_703, 2.2e-4),
        attention="mla",
        query_latent_dim=1536,
        kv_latent_dim=512,
        rope_head_dim=64,
        value_head_dim=128,
        num_experts=256,
        num_active_experts=8,
        expert_dim=2048,
        num_shared_experts=1,
        num_dense_layers=3,
        router="sigmoid",
        router_bias=True,
        router_scale=2.5,
        num_expert_groups=8,
        num_active_groups=4,
        balance_weight=1e-4,
        tied_embeddings=False,
    ),
}
