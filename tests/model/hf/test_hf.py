"""Import and export are exact to the bit; an unsupported model is refused before it is read."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from commands import call
from parts import slowly
from small_families import KINDS
from small_goldens import GOLDENS, LLAMA, by_golden
from small_model import small_model
from small_runs import write_text

from configs.errors import IntegrityError, SettingsError
from model.hf.folder import open_hf_model
from model.hf.registry import FAMILIES, find_family, read_hf_config
from model.hf.safetensors import INDEX, WEIGHTS, stored_tensors
from model.hf.tensors import ParamSlice
from sharding.tree_paths import by_path
from train.state import shape_of

CONTINUED = """
    quickstart --data.path text.txt --data.tokenizer characters --data.sequence_len 16
    --model.num_layers 2 --model.embed_dim 16 --model.mlp_dim 24
    --model.num_heads 4 --model.num_kv_heads 2 --model.head_dim 8 --model.vocab_size 61
    --model.no-qk_norm --model.no-tied_embeddings
    --optim.num_warmup_steps 0 --train.num_steps 2 --train.batch_size 8 --sample.num_tokens 4
    --sample.prompts sheep
    --checkpoint.every_steps 2 --eval.every_steps 2 --run-dir run --init-from llama
"""

QUICK = [f for f in GOLDENS if f.name in ("bert", "deepseek_v3", "gemma3", "gpt2", "llama", "t5")]


def copied(folder: Path, tmp_path: Path) -> Path:
    """Returns a copy of a golden that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    hf_config = {**json.loads(path.read_text()), **changes}
    path.write_text(
        json.dumps({name: value for name, value in hf_config.items() if value != "drop"})
    )


def header_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_weights(path: Path, header: dict, data: bytes) -> None:
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@by_golden
def test_every_slice_of_the_parameters_is_in_exactly_one_tensor(folder):
    hf_model = open_hf_model(folder, dtype="float32")
    slices = [param for tensor, _ in hf_model.matched_tensors for param in tensor.slices]
    assert len({*slices}) == len(slices)
    wanted = set()
    for path, leaf in by_path(shape_of(hf_model.config).params).items():
        num = 0
        if path.split("/")[0] in ("layers", "leading_layers", "encoder_layers"):
            experts = ("mlp/gate", "mlp/up", "mlp/down")
            is_expert = hf_model.config.num_experts and path.endswith(experts) and "layers/" in path
            num = 2 if is_expert and not path.startswith("leading") else 1
        wanted |= {ParamSlice(path, index) for index in np.ndindex(leaf.shape[:num])}
    assert {*slices} == wanted


@pytest.mark.parametrize(
    "folder",
    [*QUICK, *slowly(*(folder for folder in GOLDENS if folder not in QUICK))],
    ids=lambda folder: folder.name,
)
def test_a_model_that_is_imported_and_exported_is_the_same_bytes(folder, here):
    code, words = call("import", str(folder), "--run-dir", "run", "--dtype", "float32")
    assert code == 0, words
    code, words = call("export", "run", "out", "--shard-size", "20KB")
    assert code == 0, words
    assert "differ by 0 at most" in words
    before, after = stored_tensors(folder), stored_tensors(here / "out")
    family = open_hf_model(folder, dtype="float32").family
    assert {family.canonical_name(name) for name in before} == after.keys()
    for name, stored in before.items():
        np.testing.assert_array_equal(stored.read(), after[family.canonical_name(name)].read())
    for path in (here / "out").glob("*.safetensors"):
        header, _ = header_of(path)
        sizes = [entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"]
        assert max(end for _, end in sizes) <= 20_000 or len(sizes) == 1
    assert not list(here.glob(".*unfinished"))


@by_golden
def test_settings_that_are_written_and_read_are_the_same(folder):
    hf_model = open_hf_model(folder, dtype="float32")
    family, hf_config = find_family(hf_model.config)
    assert family.model_type == hf_model.family.model_type
    assert read_hf_config(hf_config, frozenset(), dtype="float32")[1] == hf_model.config


def test_a_model_in_many_files_is_the_model_in_one(here):
    assert call("import", str(LLAMA), "--run-dir", "run", "--dtype", "float32")[0] == 0
    assert call("export", "run", "many", "--shard-size", "2KB")[0] == 0
    assert (here / "many" / INDEX).is_file()
    assert len(list((here / "many").glob("model-*.safetensors"))) > 5
    assert call("import", "many", "--run-dir", "again", "--dtype", "float32")[0] == 0
    assert call("export", "again", "one")[0] == 0
    assert (here / "one" / WEIGHTS).read_bytes() != b""
    one, many = stored_tensors(here / "one"), stored_tensors(here / "many")
    assert one.keys() == many.keys()
    assert all(np.array_equal(one[name].read(), many[name].read()) for name in one)


def test_half_precision_is_the_rounded_weights(here):
    assert call("import", str(LLAMA), "--run-dir", "run", "--dtype", "float32")[0] == 0
    code, words = call("export", "run", "out", "--dtype", "bfloat16", "--json")
    assert code == 0, words
    assert json.loads(words.splitlines()[-1])["difference"] == 0
    before, after = stored_tensors(LLAMA), stored_tensors(here / "out")
    for name, stored in after.items():
        assert stored.dtype.name == "bfloat16"
        np.testing.assert_array_equal(stored.read(), before[name].read().astype(stored.dtype))
    assert json.loads((here / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_run_starts_from_hugging_face_weights_with_another_schedule(here):
    write_text(here)
    folder = copied(LLAMA, here)
    settings = CONTINUED.split()
    code, words = call("train", *settings)
    assert code == 0, words
    assert "with the weights of llama (llama)" in words
    shutil.rmtree(folder)  # the run stands alone from then on
    code, words = call("train", *settings)
    assert code == 0, words
    events = [json.loads(line) for line in (here / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "branched"] == [None]


def test_a_run_that_does_not_match_hugging_face_weights_is_told_the_settings_that_would(here):
    write_text(here)
    settings = "quickstart --data.path text.txt --data.tokenizer bytes --run-dir run --init-from"
    code, words = call("train", *settings.split(), str(LLAMA))
    assert code == 2
    for word in (
        "model.embed_dim=16 there, 192 here",
        "--model.embed_dim 16",
        "--model.mlp_dim 24",
    ):
        assert word in words
    assert not (here / "run").exists()


def damage(folder: Path, how: str) -> None:
    """Damages a copy of a golden in one way."""
    path = folder / WEIGHTS
    header, data = header_of(path)
    name = "model.layers.1.mlp.up_proj.weight"
    match how:
        case "unknown":
            edit(folder, model_type="mamba")
        case "setting":
            edit(folder, attention_bias=True)
        case "activation":
            edit(folder, hidden_act="tanh")
        case "scaling":
            edit(folder, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4})
        case "incomplete":
            edit(folder, intermediate_size="drop")
        case "json":
            (folder / "config.json").write_text("{")
        case "nothing":
            (folder / "config.json").unlink()
        case "missing":
            del header[name]
            write_weights(path, header, data)
        case "extra":
            write_weights(path, {**header, "model.layers.7.strange": header[name]}, data)
        case "shape":
            header[name]["shape"] = header[name]["shape"][::-1]
            write_weights(path, header, data)
        case "short":
            path.write_bytes(path.read_bytes()[:-100])
        case "pickled":
            path.rename(folder / "pytorch_model.bin")
        case "header":
            path.write_bytes(struct.pack("<Q", 50) + b"x" * 80)
        case "index":
            (folder / INDEX).write_text(json.dumps({"weight_map": {name: "../other.safetensors"}}))


BAD = {
    "unknown": (2, ("model_type=mamba", "llama", "deepseek_v3", "t5")),
    "setting": (2, ("attention_bias=True", "False")),
    "activation": (2, ("hidden_act=tanh", "silu")),
    "scaling": (2, ("rope_type=longrope", "yarn")),
    "incomplete": (2, ("intermediate_size=None", "llama")),
    "json": (2, ("config.json", "JSON")),
    "nothing": (2, ("config.json", "Hugging Face")),
    "missing": (2, ("missing", "model.layers.1.mlp.up_proj.weight")),
    "extra": (2, ("model.layers.7.strange", "unexpected")),
    "shape": (2, ("model.layers.1.mlp.up_proj.weight", "(16, 24)", "(24, 16)")),
    "short": (65, (WEIGHTS, "truncated")),
    "pickled": (2, ("pytorch_model.bin", "safe_serialization=True")),
    "header": (65, (WEIGHTS, "header")),
    "index": (65, (INDEX, "../other.safetensors")),
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_not_a_supported_model_is_refused_and_nothing_is_made(here, how):
    folder = copied(LLAMA, here)
    damage(folder, how)
    wanted_code, wanted_words = BAD[how]
    code, words = call("import", "llama", "--run-dir", "run")
    assert code == wanted_code, words
    for word in wanted_words:
        assert word in words
    assert sorted(path.name for path in here.iterdir()) == ["llama"]


def test_a_tokenizer_that_is_larger_than_the_vocabulary_is_refused(here):
    folder = copied(LLAMA, here)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(99)} | {"<|endoftext|>": 99}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    code, message = call("import", "llama", "--run-dir", "run")
    assert code == 2
    for word in ("tokenizer.json", "100", "vocab_size=61"):
        assert word in message
    assert not (here / "run").exists()


def test_an_import_or_export_over_something_is_refused(here):
    assert call("import", str(LLAMA), "--run-dir", "run")[0] == 0
    code, words = call("import", str(LLAMA), "--run-dir", "run")
    assert code == 2
    assert "--run-dir=run" in words
    (here / "out").mkdir()
    (here / "out" / "precious").write_text("x")
    code, words = call("export", "run", "out")
    assert code == 2
    assert "OUT=out" in words
    assert [path.name for path in (here / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sinks", "model.attention_sinks=True"),
        ("lstm", "model.architecture=lstm"),
        ("future", "model.mtp_depth=2"),
        ("t5", "the closest is t5, except for model.tied_embeddings=True"),
    ],
)
def test_a_model_that_no_class_has_is_refused_by_the_name_of_the_setting(name, field):
    model = KINDS[name].changed(tied_embeddings=True).model
    with pytest.raises(SettingsError) as error:
        find_family(model)
    assert field in str(error.value)


def test_a_squared_relu_is_refused_by_its_name():
    with pytest.raises(SettingsError, match=r"model\.mlp=relu2") as error:
        find_family(small_model(mlp="relu2"))
    assert "the closest is llama" in str(error.value)


def test_an_export_that_reads_back_otherwise_is_not_kept(here, monkeypatch):
    from train import hf

    assert call("import", str(LLAMA), "--run-dir", "run", "--dtype", "float32")[0] == 0
    write = hf.write_shard

    def wrong(path, shard, dtype, arrays):
        write(path, shard, dtype, (array + 0.01 for array in arrays))

    monkeypatch.setattr(hf, "write_shard", wrong)
    code, words = call("export", "run", "out")
    assert code == 1
    assert "reads back as another model" in words
    assert sorted(path.name for path in here.iterdir()) == ["run"]


def test_the_families_have_names_of_their_own():
    names = [family.model_type for family in FAMILIES]
    assert len({*names}) == len(names)


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(here):
    folder = copied(LLAMA, here)
    stored = stored_tensors(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000])
    with pytest.raises(IntegrityError, match="truncated"):
        stored["model.norm.weight"].read()
