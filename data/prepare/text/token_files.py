"""Reads arrays of token ids (.bin, .npy), and chooses their dtype."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.data import PrepareConfig
from configs.require import require
from data.prepare.text.text_records import RangeReading, TextRecord

_LLM_C = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}  # magic number: dtype
_LLM_C_HEADER_BYTES = 1024
_MEGATRON = b"MMIDIDX\0\0\1"
_MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_TOKENS_AT_ONCE = 2**20
_WORDS_LOOKED_AT = 2**20
_FEW_WORDS = 16


def choose_dtype(
    path: Path, config: PrepareConfig, vocab_size: int | None
) -> tuple[str | None, str]:
    """Returns the dtype of the ids in a .bin, and what decided it; None for an .npy, which has it.

    It is the dtype in its header (llm.c) or in the .idx beside it (Megatron); else
    data.token_dtype; else 32 bits for a vocabulary that needs them; else 16.
    """
    if path.suffix.lower() == ".npy":
        return None, ""
    given = config.token_dtype
    with path.open("rb") as file:
        head = file.read(2 * _WORDS_LOOKED_AT)
    own, by = _own_dtype(path, head, given)
    if own is not None:
        require(
            given in (None, own),
            f"data.token_dtype={given} must be {own} or None, as {by} of {path} gives {own}",
        )
        return own, by
    if given is not None:
        return given, "data.token_dtype"
    if vocab_size is not None and vocab_size > 2**16:
        return "uint32", f"the {vocab_size:,} entries of data.tokenizer"
    words = np.frombuffer(head[: len(head) // 4 * 4], "<u2").reshape(-1, 2)
    is_constant = (words == words[:1]).all(0)
    require(
        len(words) * 2 < _FEW_WORDS or is_constant.sum() != 1,
        f"data.path: {path} would be read as uint16, but every other value is "
        f"{words[0, is_constant.argmax()] if len(words) else 0}, as in ids of 32 bits: pass "
        "--data.token-dtype uint32, or uint16 if the ids have 16 bits",
    )
    return "uint16", "default"


def _llm_c_header(head: bytes) -> tuple[np.dtype | None, int]:
    """Returns the dtype and the number of ids by the header of llm.c; None without one."""
    magic, _, num_tokens = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
    return _LLM_C.get(magic), num_tokens


def _own_dtype(path: Path, head: bytes, given: str | None) -> tuple[str | None, str]:
    """Returns the dtype in a file's own header or index, and which of the two; None without one."""
    if (own := _llm_c_header(head)[0]) is not None:
        return own.name, "the header of llm.c"
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None, ""
    with index.open("rb") as file:
        header = file.read(34)
    if header and not header.startswith(_MEGATRON):
        return None, ""  # another program's
    header = header.ljust(34, b"\0")
    num_lengths = int.from_bytes(header[18:26], "little")
    num_lengths *= 34 + 4 * num_lengths <= index.stat().st_size  # 0 for a truncated index
    num_tokens = 0
    if num_lengths:
        lengths = np.memmap(index, "<i4", "r", len(header), (num_lengths,))
        num_tokens = int(lengths.sum(dtype=np.int64))
    dtype, num_bytes = _MEGATRON_DTYPES.get(header[17]), path.stat().st_size
    agrees = dtype is not None and num_tokens * np.dtype(dtype).itemsize == num_bytes
    require(
        agrees or given is not None,
        f"data.path: {index} must be the index of {path} as Megatron writes it, but has "
        f"dtype={dtype} and {num_tokens:,} tokens for {num_bytes:,} bytes: copy both again, or "
        "pass --data.token-dtype to read the .bin without it",
    )
    return (dtype, "the .idx") if agrees else (None, "")


def read_tokens(reading: RangeReading) -> Iterator[TextRecord]:
    ids, byte_range = open_tokens(reading.path, reading.file.dtype), reading.byte_range
    size = ids.dtype.itemsize
    stop = len(ids) if byte_range.stop is None else byte_range.stop // size
    for start in range(byte_range.start // size, min(stop, len(ids)), _TOKENS_AT_ONCE):
        chunk = np.asarray(ids[start : min(start + _TOKENS_AT_ONCE, stop)])
        yield TextRecord(start, ids=chunk, begins=start == 0)


def open_tokens(path: Path, dtype: str | None) -> np.ndarray:
    if dtype is None:
        ids = np.lib.format.open_memmap(path, mode="r")  # np.load would unpickle and unzip as well
    else:
        with path.open("rb") as file:
            own, num_tokens = _llm_c_header(file.read(12))
        offset = 0 if own is None else _LLM_C_HEADER_BYTES
        ids: Any = np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r", offset)
        if offset and len(ids) != num_tokens:
            raise ValueError(f"it holds {len(ids)} tokens, its header says {num_tokens}")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"it holds {ids.dtype} of shape {ids.shape}, not integers on one axis")
    return ids
