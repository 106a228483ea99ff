"""Checkpoint files in safetensors format: read tensor by tensor, written shard by shard.

A file is eight bytes with the length of its header, the header in JSON, then the tensors. The
safetensors library is not used, because it maps or holds whole files; here at most one tensor is in
memory. Source: github.com/huggingface/safetensors, "Format".
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from configs.errors import IntegrityError
from configs.require import require
from sharding.fill_sharded import PIECE_BYTES

_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER_BYTES = 100_000_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the tensor; IntegrityError if the file ends inside it."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            content = bytearray(self.num_bytes)
            if file.readinto(content) != self.num_bytes:
                raise IntegrityError(f"{self.file} was truncated while it was read")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns all tensors of a checkpoint by name, from the headers of its files.

    Raises:
        SettingsError: the folder has no weights, or only pickled ones.
        IntegrityError: a file is missing, truncated, or does not match the index.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{index} is not an index of safetensors files: {error!r}"
            ) from None
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise IntegrityError(f"{index} lists {name}, which is not in {folder}")
        found = {key: s for name in names for key, s in _read_header(folder / name).items()}
        missing = sorted(weight_map.keys() - found.keys())
        if missing:
            raise IntegrityError(
                f"{folder / weight_map[missing[0]]} must hold {missing[0]} according to {INDEX}, "
                "but does not"
            )
        return found
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    files = files or sorted(folder.glob("*.safetensors"))
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    require(
        bool(files) or not pickled,
        f"{folder} has its weights in {', '.join(pickled[:3])} and must have them in {WEIGHTS}: "
        "loading a pickle runs code; save the model again with safe_serialization=True",
    )
    require(len(files) == 1, f"{folder} must have {WEIGHTS}, or {INDEX} and the files it lists")
    return _read_header(files[0])


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise IntegrityError(f"{path} is not a safetensors file, or is truncated: {size} bytes")
        content = file.read(length)
    try:
        entries = json.loads(content)
        entries.pop("__metadata__", None)
        tensors, begin = {}, 8 + length
        end = begin
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            dtype = entry["dtype"]
            if dtype not in _DTYPES:
                raise IntegrityError(f"{path}: {name} has dtype {dtype}, which is not supported")
            shape = tuple(entry["shape"])
            stored = StoredTensor(path, np.dtype(_DTYPES[dtype]), shape, begin + first)
            if last - first != stored.num_bytes or first < 0:
                raise IntegrityError(
                    f"{path}: {name} has {last - first} bytes, its shape {stored.num_bytes}"
                )
            tensors[name] = stored
            end = max(end, begin + last)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} has a header that does not parse: {error!r}") from None
    if end != size:
        raise IntegrityError(f"{path} must have {end} bytes but has {size}: it is truncated")
    return tensors


@dataclass(frozen=True)
class Shard:
    """A file to write: its name, and the shapes of its tensors by name, in order."""

    name: str
    shapes: dict[str, tuple[int, ...]]


def plan_shards(
    shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_bytes: int
) -> list[Shard]:
    """Returns files of at most max_bytes; a tensor that is larger has a file of its own."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > max_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += size
    if len(groups) == 1:
        return [Shard(WEIGHTS, groups[0])]
    return [
        Shard(f"model-{i:05}-of-{len(groups):05}.safetensors", group)
        for i, group in enumerate(groups, 1)
    ]


def write_shard(path: Path, shard: Shard, dtype: np.dtype, arrays: Iterable[np.ndarray]) -> None:
    """Writes a file from arrays in the order of the shard; takes one at a time."""
    dtype_name = next(name for name, known in _DTYPES.items() if np.dtype(known) == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)))
        file.write(content)
        for shape, array in zip(shard.shapes.values(), arrays, strict=True):
            assert array.shape == shape
            rows = np.atleast_1d(array)
            num_pieces = -(-rows.size * dtype.itemsize // PIECE_BYTES)
            for piece in np.array_split(rows, max(1, min(num_pieces, len(rows)))):
                file.write(np.ascontiguousarray(piece, dtype).reshape(-1).view(np.uint8).data)


def shard_index(shards: Iterable[Shard], dtype: np.dtype) -> dict[str, Any]:
    """Returns the content of model.safetensors.index.json."""
    weight_map = {name: shard.name for shard in shards for name in shard.shapes}
    total = sum(prod(shape) for shard in shards for shape in shard.shapes.values())
    return {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": weight_map}
