"""Makes tests/model/hf/goldens/*/: tiny random models of `transformers`, and their outputs.

Needs an environment of its own with torch, transformers and safetensors, not that of the product:

    PYTHON tests/model/hf/goldens/make_goldens.py [FAMILY ...]

Every folder is what `save_pretrained` writes, with golden.npz beside it: the inputs, and the hidden
states and logits in float32 (of the decoder where there are two texts).
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

HERE = Path(__file__).resolve().parent
V, D, T = 61, 16, 24  # tokens, width, length of the rows
LLAMA: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
LONG = {"rope_theta": 500.0, "original_max_position_embeddings": 8, "factor": 4.0}


def _llama(**changes: Any) -> hf.PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA, **changes}))


def _llama3() -> hf.PreTrainedModel:
    rope = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONG}
    return _llama(rope_parameters=rope, tie_word_embeddings=True)


def _yarn() -> hf.PreTrainedModel:
    return _llama(rope_parameters={"rope_type": "yarn", **LONG})


def _linear() -> hf.PreTrainedModel:
    return _llama(rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0})


def _gpt2() -> hf.PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=V,
            n_embd=D,
            n_layer=2,
            n_head=4,
            n_positions=T,
            initializer_range=0.3,
            attn_implementation="eager",
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _mistral() -> hf.PreTrainedModel:
    return hf.MistralForCausalLM(hf.MistralConfig(**LLAMA, sliding_window=7))


def _qwen2() -> hf.PreTrainedModel:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA, rope_theta=100.0))


def _qwen3() -> hf.PreTrainedModel:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**{"tie_word_embeddings": True, **LLAMA}))


def _olmo2() -> hf.PreTrainedModel:
    settings = {name: value for name, value in LLAMA.items() if name != "head_dim"}
    return hf.Olmo2ForCausalLM(hf.Olmo2Config(**settings))


def _gemma2() -> hf.PreTrainedModel:
    more = {"sliding_window": 7, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 3.0}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**LLAMA, **more, final_logit_softcapping=5.0))


def _gemma3() -> hf.PreTrainedModel:
    settings = {**LLAMA, "num_hidden_layers": 8}
    return hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **settings,
            sliding_window=5,
            query_pre_attn_scalar=12,
            rope_theta=1000.0,
            rope_local_base_freq=100.0,
            rope_scaling={"rope_type": "linear", "factor": 2.0},
        )
    )


def _mixtral() -> hf.PreTrainedModel:
    return hf.MixtralForCausalLM(
        hf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    )


def _qwen3_moe() -> hf.PreTrainedModel:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**LLAMA, **more, norm_topk_prob=True))


def _deepseek_v3() -> hf.PreTrainedModel:
    settings = {name: value for name, value in LLAMA.items() if name != "head_dim"}
    settings["num_key_value_heads"] = LLAMA["num_attention_heads"]
    return hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(
            **{**settings, "num_hidden_layers": 3},
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            moe_intermediate_size=12,
            first_k_dense_replace=1,
            kv_lora_rank=10,
            q_lora_rank=12,
            qk_rope_head_dim=4,
            qk_nope_head_dim=6,
            v_head_dim=8,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 8,
            },
        )
    )


def _bert() -> hf.PreTrainedModel:
    return hf.BertForPreTraining(
        hf.BertConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=T,
            initializer_range=0.3,
            attn_implementation="eager",
        )
    )


def _modernbert() -> hf.PreTrainedModel:
    return hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            vocab_size=V,
            hidden_size=D,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            local_attention=8,
            initializer_range=0.3,
            initializer_cutoff_factor=2.0,
            attn_implementation="eager",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        )
    )


def _t5() -> hf.PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=V,
            d_model=D,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            initializer_factor=1.0,
            decoder_start_token_id=0,
            attn_implementation="eager",
        )
    )


def _marian() -> hf.PreTrainedModel:
    return hf.MarianMTModel(
        hf.MarianConfig(
            vocab_size=V,
            d_model=D,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            forced_eos_token_id=2,
            decoder_start_token_id=0,
            init_std=0.3,
            attn_implementation="eager",
        )
    )


MODELS = {
    "gpt2": _gpt2,
    "llama": _llama,
    "llama3": _llama3,
    "llama_linear": _linear,
    "llama_yarn": _yarn,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "olmo2": _olmo2,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
    "bert": _bert,
    "modernbert": _modernbert,
    "t5": _t5,
    "marian": _marian,
}


def randomize(model: hf.PreTrainedModel, seed: int) -> None:
    """Moves every parameter and buffer that is saved, so that no norm is one and no bias zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "embed_positions" not in name:
                # T5 does not scale scores, so that large weights would magnify every rounding.
                scale = 0.1 if model.config.model_type == "t5" else 0.3
                tensor.add_(scale * torch.randn(tensor.shape, generator=draw))


def make_inputs(seed: int, *, is_pair: bool) -> dict[str, torch.Tensor]:
    """Returns two rows of tokens, the second with padding at its end."""
    draw = np.random.default_rng(seed)
    tokens = torch.tensor(draw.integers(3, V, (2, T)))
    mask = torch.ones((2, T), dtype=torch.long)
    mask[1, T - 7 :] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if is_pair:
        inputs["decoder_input_ids"] = torch.tensor(draw.integers(3, V, (2, T // 2)))
    return inputs


def make(name: str) -> None:
    """Writes the folder of one family."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if name == "t5":  # v1.1 has a head of its own, which the class does not make by itself
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, D))
        model.config.tie_word_embeddings = False
        model.config.scale_decoder_outputs = False
    randomize(model, seed=1)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    inputs = make_inputs(2, is_pair=model.config.is_encoder_decoder)
    if name == "bert":
        inputs["token_type_ids"] = torch.tensor([[0] * 9 + [1] * (T - 9)] * 2)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    arrays = {key: value.numpy().astype(np.int32) for key, value in inputs.items()}
    is_bert = name == "bert"
    arrays["logits"] = (output.prediction_logits if is_bert else output.logits).numpy()
    if is_bert:
        arrays["next_sentence"] = output.seq_relationship_logits.numpy()
    hidden = output.decoder_hidden_states if "decoder_input_ids" in inputs else output.hidden_states
    arrays["hidden"] = hidden[-1].numpy()
    np.savez(folder / "golden.npz", **arrays)


if __name__ == "__main__":
    for family in sys.argv[1:] or MODELS:
        make(family)
