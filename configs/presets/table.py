"""Named runs, by the name one types: ./tessera train NAME. A variant worth keeping is a preset."""

from collections.abc import Callable

from configs.presets.bert import (
    bert_base,
    bert_large,
    modernbert_base,
    modernbert_large,
)
from configs.presets.gemma import gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b
from configs.presets.gpt2 import gpt2_124m, gpt2_355m, gpt2_774m, gpt2_1558m
from configs.presets.llama import llama3_8b, llama3_70b, llama3_405b, llama_1b, mistral_7b
from configs.presets.mixture_of_experts import deepseek_v3, mixtral_8x7b
from configs.presets.qwen import (
    qwen3_0_6b,
    qwen3_1_7b,
    qwen3_4b,
    qwen3_8b,
    qwen3_14b,
    qwen3_30b_a3b,
    qwen3_32b,
)
from configs.presets.small import (
    quickstart,
    quickstart_bert,
    quickstart_lstm,
    quickstart_moe,
    quickstart_t5,
    shakespeare_cpu,
    shakespeare_gpu,
)
from configs.presets.t5 import (
    first_transformer,
    t5_base,
    t5_large,
    t5_small,
    t5_xl,
    t5_xxl,
)
from configs.run import RunConfig

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
        gpt2_355m,
        gpt2_774m,
        gpt2_1558m,
        llama_1b,
        llama3_8b,
        llama3_70b,
        llama3_405b,
        mistral_7b,
        qwen3_0_6b,
        qwen3_1_7b,
        qwen3_4b,
        qwen3_8b,
        qwen3_14b,
        qwen3_32b,
        qwen3_30b_a3b,
        gemma3_1b,
        gemma3_4b,
        gemma3_12b,
        gemma3_27b,
        mixtral_8x7b,
        deepseek_v3,
        bert_base,
        bert_large,
        modernbert_base,
        modernbert_large,
        t5_small,
        t5_base,
        t5_large,
        t5_xl,
        t5_xxl,
        first_transformer,
    )
}
