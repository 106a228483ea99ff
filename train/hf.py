"""Runs that begin with the weights of a Hugging Face model, and such models made of runs."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from configs.check import require
from configs.data import DataConfig
from configs.errors import CheckFailed
from configs.model import ModelConfig
from configs.run import (
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from configs.settings import flatten
from data.atomic_files import write_json
from data.tokenizers.export_json import as_tokenizer_json, named_tokens
from data.tokenizers.tokenizer import Tokenizer
from model.hf.folder import CONFIG, PublishedModel, open_published
from model.hf.registry import find_family
from model.hf.safetensors import INDEX, index_of, plan_shards, write_shard
from model.hf.weights import tensor_arrays
from model.inputs import Inputs
from sharding.mesh import make_mesh
from train.checkpoints.context import CheckpointContext
from train.checkpoints.manifest import RunProgress
from train.checkpoints.save import Checkpoints
from train.optimizer import Params
from train.record.run_folder import RunFolder
from train.state import TrainState, shape_of

DTYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
PUBLISHED = "huggingface"
"""The folder of a run that holds the small files an imported model came with."""
_ID_NAMES = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "cls_token_id",
    "sep_token_id",
)
_ROW = 32
"""Tokens of the rows that both models are asked about after an export."""


def run_of(found: PublishedModel, tokenizer: str | None) -> RunConfig:
    """Returns the settings of a run that has an imported model, no data yet, and no steps."""
    config, length = found.config, min(found.longest_row, 4096)
    data: dict[str, Any] = {"sequence_len": length}
    if tokenizer is not None:
        data["tokenizer"] = tokenizer
    if config.architecture == "encoder":
        data |= {"objective": "masked_pairs" if config.next_sentence else "masked"}
        data |= {"special_tokens": ("masked",)}
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


def mesh_for(config: ModelConfig) -> jax.sharding.Mesh:
    """Returns a mesh of all devices here, over which the parameters are cut where they divide."""
    num = jax.device_count()
    widths = (config.embed_dim, config.query_latent_dim or num, config.kv_latent_dim or num)
    is_even = all(width % num == 0 for width in widths)
    return make_mesh(MeshConfig(data=1, fsdp="rest") if is_even else MeshConfig())


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """Gives a folder to write into that gets its name when all is written.

    What an earlier try left unfinished is removed.
    """
    making = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        if path.is_dir():
            path.rmdir()  # it is empty, which was looked at before
        os.rename(making, path)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def check_new(path: Path, field: str) -> None:
    """Raises SettingsError unless a folder is not there yet, or is empty."""
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(free, f"{field}={path} must not be there yet, or be empty: give another {field}")


def import_model(found: PublishedModel, run_dir: Path, environment: dict[str, Any]) -> int:
    """Makes a run folder of a model; returns how many parameters it has, padding included.

    Its one checkpoint, at step 0, has weights and no moments: other runs begin with it.
    """
    check_new(run_dir, "--run-dir")
    mesh = mesh_for(found.config)
    shape = shape_of(found.config)
    with jax.set_mesh(mesh), whole_or_not_at_all(run_dir) as making:
        (making / PUBLISHED).mkdir()
        for path in found.small_files:
            shutil.copyfile(path, making / PUBLISHED / path.name)
        tokenizer = found.tokenizer and run_dir.absolute() / PUBLISHED / found.tokenizer.name
        config = run_of(found, tokenizer and str(tokenizer))
        params = found.read(shape.params, shape.layout(mesh))
        folder = RunFolder(making)
        folder.begin(config, environment)
        folder.add_event("imported", source=str(found.path.absolute()))
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


def export_model(
    config: RunConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    kept: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"],
    shard_bytes: int,
    say: Callable[[str], None],
) -> float:
    """Writes a model as `save_pretrained` would; returns the largest difference of logits.

    The parameters are given up on the way: what was written is read back in their place.

    Args:
        kept: the small files that the model came with, if it was imported.

    Raises:
        SettingsError: no class of Hugging Face has such a model, or the folder is not empty.
        CheckFailed: what was read back is another model.
    """
    check_new(out, "OUT")
    family, said = find_family(config.model)
    tensors = list(family.tensors(config.model))
    kind = np.dtype(DTYPES[dtype])
    if kind != np.float32:
        rounded = jax.jit(lambda x: x.astype(kind).astype(x.dtype), donate_argnums=0)
        params = jax.tree.map(rounded, params)
    shards = plan_shards({tensor.name: tensor.shape for tensor in tensors}, kind, shard_bytes)
    by_name = {tensor.name: tensor for tensor in tensors}
    with whole_or_not_at_all(out) as making:
        for shard in shards:
            arrays = tensor_arrays(params, [by_name[name] for name in shard.shapes])
            write_shard(making / shard.name, shard, kind, arrays)
            say(f"wrote {shard.name}: {len(shard.shapes)} tensors")
        if len(shards) > 1:
            write_json(making / INDEX, index_of(shards, kind))
        said |= {"dtype": dtype, "torch_dtype": dtype, **_length(config)}
        write_json(making / CONFIG, {**said, **_ids(kept, tokenizer)})
        _write_tokenizer(making, kept, tokenizer, _length(config)["max_position_embeddings"])
        before = _logits(config.model, params)
        layout = jax.tree.map(lambda leaf: leaf.sharding, params)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        for leaf in jax.tree.leaves(params):
            leaf.delete()
        back = open_published(making, dtype=config.model.dtype)
        after = _logits(back.config, back.read(shapes, layout))
        difference = float(np.max(np.abs(before - after)))
        scale = float(np.max(np.abs(before)))
        if not difference <= 1e-6 * scale:
            raise CheckFailed(
                f"what was written to {out} reads back as another model: logits differ by "
                f"{difference:.3g} of {scale:.3g}; nothing was kept"
            )
    return difference


def _logits(config: ModelConfig, params: Params) -> np.ndarray:
    """Returns the logits of a model for two rows of tokens, the same for each model of its size."""
    draw = np.random.default_rng(0)
    tokens_BT = draw.integers(0, config.num_tokens, (2 * jax.device_count(), _ROW), np.int32)
    positions_BT = np.broadcast_to(np.arange(_ROW, dtype=np.int32), tokens_BT.shape)
    text = jax.tree.map(jnp.asarray, (tokens_BT, positions_BT, np.ones_like(tokens_BT)))
    inputs = Inputs(*text)
    if config.architecture == "encoder_decoder":
        inputs = inputs._replace(encoder=Inputs(*text))
    shape = shape_of(config)

    @jax.jit
    def run(params: Params, inputs: Inputs) -> jax.Array:
        model = shape.merge(params)
        return model.logits(model(inputs))[..., : config.num_tokens]

    return np.asarray(run(params, inputs))


def _length(config: RunConfig) -> dict[str, Any]:
    return {"max_position_embeddings": config.model.num_positions or config.data.sequence_len}


def _ids(kept: Path | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Returns the ids of tokens with a meaning, by their names in config.json.

    Of an imported model they are its own. Our separator both begins and ends a text.
    """
    if kept is not None:
        said = json.loads((kept / CONFIG).read_bytes())
        return {name: said.get(name) for name in _ID_NAMES if name in said}
    if tokenizer is None:
        return dict.fromkeys(_ID_NAMES)
    end, special = tokenizer.separator, tokenizer.special
    given = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": special.get("[PAD]", end),
        "decoder_start_token_id": end,
        "cls_token_id": special.get("[CLS]"),
        "sep_token_id": special.get("[SEP]"),
    }
    return {name: index for name, index in given.items() if index is not None}


def _write_tokenizer(
    folder: Path, kept: Path | None, tokenizer: Tokenizer | None, longest: int
) -> None:
    """Writes the files that an imported model came with, or those of a tokenizer of ours."""
    if kept is not None:
        for path in sorted(kept.iterdir()):
            if path.name != CONFIG:
                shutil.copyfile(path, folder / path.name)
    elif tokenizer is not None:
        if tokenizer.kind == "sentencepiece":
            (folder / "tokenizer.model").write_bytes(tokenizer.content())
        content = as_tokenizer_json(tokenizer)
        if content is not None:
            (folder / "tokenizer.json").write_bytes(content)
            said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
            write_json(
                folder / "tokenizer_config.json", {**said, **named_tokens(tokenizer, content)}
            )
