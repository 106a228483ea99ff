"""Imports a Hugging Face model as a run; exports the model of a run as a Hugging Face folder."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from configs.data import DataConfig
from configs.errors import CheckFailed
from configs.flat_settings import flatten
from configs.model import ModelConfig
from configs.require import require
from configs.run import (
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from data.atomic_files import write_json
from data.tokenizers.hf_files import (
    TOKEN_ID_KEYS,
    config_token_ids,
    find_tokenizer_file,
    write_tokenizer_files,
)
from data.tokenizers.tokenizer import Tokenizer, open_tokenizer
from model.hf.family import Family
from model.hf.folder import CONFIG, HFModel, open_hf_model
from model.hf.registry import find_family
from model.hf.safetensors import INDEX, plan_shards, shard_index, write_shard
from model.hf.weights import hf_arrays
from model.inputs import Inputs
from sharding.mesh import make_mesh
from train.checkpoints.context import CheckpointContext
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.optimizer import Params
from train.record.run_folder import RunFolder
from train.state import TrainState, shape_of

_IMPORTED = "huggingface"
"""The folder of a run with the files that an imported model had beside its weights."""
_IMPORTED_SUFFIXES = (".json", ".model", ".txt", ".jinja")  # settings, tokenizer, chat template
_CHECK_LEN = 32
"""Tokens of the sequences on which the logits before and after an export are compared."""


def import_model(hf_model: HFModel, run_dir: Path, environment: dict[str, Any]) -> int:
    """Makes a run folder of a model; returns its number of parameters, padding included.

    The run has no data, and one checkpoint at step 0 without optimizer state, for other runs to
    start from.

    Raises:
        SettingsError: the tokenizer cannot be used, or the run folder is not empty.
    """
    tokenizer_file = find_tokenizer_file(hf_model.path)
    _check_tokenizer(hf_model, tokenizer_file)
    _check_new_folder(run_dir, "--run-dir")
    mesh = _mesh_for(hf_model.config)
    shape = shape_of(hf_model.config)
    with jax.set_mesh(mesh), _atomic_folder(run_dir) as temporary:
        (temporary / _IMPORTED).mkdir()
        for path in sorted(hf_model.path.iterdir()):
            if path.suffix in _IMPORTED_SUFFIXES and path.name != INDEX and path.is_file():
                shutil.copyfile(path, temporary / _IMPORTED / path.name)
        imported = run_dir.absolute() / _IMPORTED
        config = _run_config(hf_model, tokenizer_file and imported / tokenizer_file.name)
        params = hf_model.read_params(shape.params, shape.layout(mesh))
        folder = RunFolder(temporary)
        folder.begin(config, environment)
        folder.add_event("imported", source=str(hf_model.path.absolute()))
        context = CheckpointContext(
            folder.checkpoints.absolute(), config.checkpoint, emit=folder.add_event
        )
        state = TrainState(jnp.zeros((), jnp.int32), params, ())
        checkpoints = Checkpoints(context, flatten(config), one_at_a_time=state)
        checkpoints.save(state, RunProgress(step=0, tokens=0, data_sha256="none: imported"))
        cause = checkpoints.wait()
        checkpoints.close()
        if cause is not None:
            raise OSError(cause)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _run_config(hf_model: HFModel, tokenizer_file: Path | None) -> RunConfig:
    """Returns the settings of the run of an imported model: no data, no training steps."""
    config, length = hf_model.config, min(hf_model.max_sequence_len, 4096)
    data: dict[str, Any] = {"sequence_len": length}
    if tokenizer_file is not None:
        data["tokenizer"] = str(tokenizer_file)
    if config.architecture == "encoder":
        objective = "masked_pairs" if config.next_sentence else "masked"
        data |= {"objective": objective, "special_tokens": ("masked",)}
    if config.architecture == "encoder_decoder":
        data |= {"objective": "span", "special_tokens": ("span",)}
        data |= {"sequence_len": min(length, 512), "target_len": min(length, 512) // 4}
    return RunConfig(
        model=config,
        data=DataConfig(**data),
        optim=OptimConfig(peak_lr=1e-4, num_warmup_steps=0),
        train=TrainConfig(num_steps=1, batch_size=1),
        checkpoint=CheckpointConfig(every_steps=1),
        eval=EvalConfig(every_steps=None),
    )


def _check_tokenizer(hf_model: HFModel, file: Path | None) -> None:
    """Raises SettingsError if the tokenizer cannot be read, or has more tokens than a decoder."""
    if file is None:
        return
    tokenizer = open_tokenizer(_run_config(hf_model, file).data)
    size, num_tokens = tokenizer.vocab_size if tokenizer else 0, hf_model.config.num_tokens
    require(
        size <= num_tokens or hf_model.config.architecture != "decoder",
        f"{file} has {size} tokens, and config.json: vocab_size={num_tokens} must be at least "
        "that: give the folder its own tokenizer",
    )


def _mesh_for(config: ModelConfig) -> jax.sharding.Mesh:
    """Returns a mesh of all devices here, fully sharded if their number divides all widths."""
    num = jax.device_count()
    widths = (config.embed_dim, config.query_latent_dim or num, config.kv_latent_dim or num)
    is_even = all(width % num == 0 for width in widths)
    return make_mesh(MeshConfig(data=1, fsdp="rest") if is_even else MeshConfig())


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder that is renamed to path at the end, and removed after an error.

    One that an earlier try left is removed.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()  # it is empty, as checked before
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_new_folder(path: Path, field: str) -> None:
    """Raises SettingsError unless a folder does not exist yet, or is empty."""
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(free, f"{field}={path} must be a new or an empty folder: give another {field}")


def check_export(config: ModelConfig, out: Path) -> Family:
    """Returns the family to export to; SettingsError if there is none, or out is not empty."""
    _check_new_folder(out, "OUT")
    return find_family(config)[0]


def export_model(
    config: RunConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    run_dir: Path,
    dtype: Literal["float32", "bfloat16", "float16"],
    shard_bytes: int,
    emit: Callable[[str], None],
) -> float:
    """Writes a model as `save_pretrained` does; returns the largest difference of logits.

    The parameters are deleted on the way: what was written is read back in their place.

    Args:
        run_dir: of the model; an imported one gets its settings of tokens and its tokenizer back.
        emit: gets a line for each file of weights.

    Raises:
        SettingsError: no Hugging Face class has such a model.
        CheckFailed: the files read back as another model.
    """
    family, hf_config = find_family(config.model)
    imported = run_dir / _IMPORTED if (run_dir / _IMPORTED).is_dir() else None
    tensors = {tensor.name: tensor for tensor in family.tensors(config.model)}
    stored_dtype = jnp.dtype(dtype)
    if stored_dtype != np.float32:
        rounded = jax.jit(lambda x: x.astype(stored_dtype).astype(x.dtype), donate_argnums=0)
        params = jax.tree.map(rounded, params)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shards = plan_shards(shapes, stored_dtype, shard_bytes)
    max_sequence_len = config.model.num_positions or config.data.sequence_len
    with _atomic_folder(out) as temporary:
        for shard in shards:
            arrays = hf_arrays(params, [tensors[name] for name in shard.shapes])
            write_shard(temporary / shard.name, shard, stored_dtype, arrays)
            emit(f"wrote {shard.name}: {len(shard.shapes)} tensors")
        if len(shards) > 1:
            write_json(temporary / INDEX, shard_index(shards, stored_dtype))
        hf_config |= {"dtype": dtype, "torch_dtype": dtype}
        hf_config |= {"max_position_embeddings": max_sequence_len}
        hf_config |= _token_ids(imported, tokenizer)
        write_json(temporary / CONFIG, hf_config)
        if imported is not None:
            for path in sorted(imported.iterdir()):
                if path.name != CONFIG:
                    shutil.copyfile(path, temporary / path.name)
        elif tokenizer is not None:
            write_tokenizer_files(temporary, tokenizer, max_sequence_len)
        return _read_back(config.model, params, temporary, out)


def _token_ids(imported: Path | None, tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Returns the ids of special tokens in config.json: those of the imported one, if any."""
    if imported is not None:
        hf_config = json.loads((imported / CONFIG).read_bytes())
        return {key: hf_config[key] for key in TOKEN_ID_KEYS if key in hf_config}
    return {**config_token_ids(tokenizer)} if tokenizer else dict.fromkeys(TOKEN_ID_KEYS)


def _read_back(config: ModelConfig, params: Params, folder: Path, out: Path) -> float:
    """Returns how far the logits of the model in a folder are from those of params, now deleted."""
    before = _logits(config, params)
    layout = jax.tree.map(lambda leaf: leaf.sharding, params)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for leaf in jax.tree.leaves(params):
        leaf.delete()
    hf_model = open_hf_model(folder, dtype=config.dtype)
    after = _logits(hf_model.config, hf_model.read_params(shapes, layout))
    difference = float(np.max(np.abs(before - after)))
    scale = float(np.max(np.abs(before)))
    if not difference <= 1e-6 * scale:
        raise CheckFailed(
            f"OUT={out} was removed: the exported model reads back as another model, whose logits "
            f"differ by {difference:.3g}, the largest being {scale:.3g}"
        )
    return difference


def _logits(config: ModelConfig, params: Params) -> np.ndarray:
    """Returns the logits of a model on two random sequences per device, the same for each model."""
    rng = np.random.default_rng(0)
    shape_BT = (2 * jax.device_count(), _CHECK_LEN)
    tokens_BT = rng.integers(0, config.num_tokens, shape_BT, np.int32)
    positions_BT = np.broadcast_to(np.arange(_CHECK_LEN, dtype=np.int32), shape_BT)
    segments_BT = jnp.ones(shape_BT, jnp.int32)
    inputs = Inputs(jnp.asarray(tokens_BT), jnp.asarray(positions_BT), segments_BT)
    if config.architecture == "encoder_decoder":
        inputs = inputs._replace(encoder=inputs)
    shape = shape_of(config)

    @jax.jit
    def run(params: Params, inputs: Inputs) -> jax.Array:
        model = shape.merge(params)
        return model.logits(model(inputs))[..., : config.num_tokens]

    return np.asarray(run(params, inputs))
