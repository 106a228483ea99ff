"""Mixtures of experts at their published sizes: Mixtral 8x7B and DeepSeek-V3."""

from configs.model import ModelConfig
from configs.presets.pretraining import pretrain
from configs.run import RunConfig


def mixtral_8x7b() -> RunConfig:
    """Mixtral 8x7B at its published shape: 46,702,792,704 parameters, two of eight experts a token.

    Rows are of 8192 tokens, where the paper's are of 32768. 255 B tokens are 20 for each of the
    12.7 B parameters that compute one: 2.2e22 FLOP, about 18 days on 64 v5p chips at half their
    peak. Source: Jiang et al. 2024, Mixtral of experts, arXiv:2401.04088, table 1.
    """
    model = ModelConfig(
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
        tied_embeddings=False,
        remat="full",
    )
    return pretrain(model, sequence_len=8192, batch_size=512, num_steps=60_797, peak_lr=3e-4)


def deepseek_v3() -> RunConfig:
    """DeepSeek-V3 at its published shape: 671,026,419,200 parameters, 37 B of them for a token.

    Rows are of 4096 tokens. 750 B tokens are 20 for each of the 37 B: 1.7e23 FLOP, where the paper
    took 14.8 T. Without its prediction of a second token, which model.mtp_depth adds.
    Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 4.2.
    """
    model = ModelConfig(
        num_layers=61,
        embed_dim=7168,
        attention="mla",
        num_heads=128,
        num_kv_heads=128,
        head_dim=128,
        query_latent_dim=1536,
        kv_latent_dim=512,
        rope_head_dim=64,
        value_head_dim=128,
        mlp_dim=18_432,
        vocab_size=129_280,
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
        remat="full",
    )
    return pretrain(model, sequence_len=4096, batch_size=4096, num_steps=44_703, peak_lr=2.2e-4)
