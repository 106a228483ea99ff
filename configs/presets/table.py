"""Named runs, by the name one types: ./tessera train NAME. A variant worth keeping is a preset."""

import inspect

from configs.presets.decoders import EXPERTS, GEMMA, GPT2, LLAMA, QWEN
from configs.presets.encoders import ENCODER_DECODERS, ENCODERS
from configs.presets.preset import Preset
from configs.presets.small import (
    quickstart,
    quickstart_bert,
    quickstart_lstm,
    quickstart_moe,
    quickstart_t5,
    shakespeare_cpu,
    shakespeare_gpu,
)

_SMALL = (
    quickstart,
    quickstart_bert,
    quickstart_lstm,
    quickstart_moe,
    quickstart_t5,
    shakespeare_cpu,
    shakespeare_gpu,
)

FAMILIES: dict[str, dict[str, Preset]] = {
    "Small runs, of minutes on a CPU or one GPU": {
        make.__name__: Preset(inspect.getdoc(make) or "", make()) for make in _SMALL
    },
    "GPT-2 at its four published sizes": GPT2,
    "Llama 3 and Mistral at their published sizes": LLAMA,
    "Qwen3 at its published sizes, dense and with experts": QWEN,
    "Gemma 3, its text models, at their published sizes": GEMMA,
    "Mixtures of experts at their published sizes": EXPERTS,
    "Encoders at their published sizes": ENCODERS,
    "Encoders beside decoders at their published sizes": ENCODER_DECODERS,
}
"""{what they have in common: {name: preset}}."""

PRESETS = {name: preset for family in FAMILIES.values() for name, preset in family.items()}
