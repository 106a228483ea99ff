"""Import and export need little memory beside the arrays that they fill."""

import filecmp
import re
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT

from data.atomic_files import write_json
from model.hf.registry import read_hf_config
from model.hf.safetensors import INDEX, plan_shards, shard_index, write_shard


def write_llama(
    out: Path, *, hidden_size: int, num_layers: int, mlp_size: int, vocab_size: int, most: int
) -> int:
    """Writes a random Llama in files of `most` bytes; returns the bytes of all."""
    hf_config = {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "intermediate_size": mlp_size,
        "num_attention_heads": hidden_size // 64,
        "num_key_value_heads": hidden_size // 64,
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }
    family, config = read_hf_config(hf_config, set())
    shapes = {tensor.name: tensor.shape for tensor in family.tensors(config)}
    draw = np.random.default_rng(0)
    shards = plan_shards(shapes, np.dtype(np.float32), most)
    out.mkdir()
    for shard in shards:
        arrays = (0.02 * draw.standard_normal(s, np.float32) for s in shard.shapes.values())
        write_shard(out / shard.name, shard, np.dtype(np.float32), arrays)
    if len(shards) > 1:
        write_json(out / INDEX, shard_index(shards, np.dtype(np.float32)))
    write_json(out / "config.json", hf_config)
    return 4 * sum(prod(shape) for shape in shapes.values())


def peak_bytes(*arguments: str | Path) -> int:
    """Returns the most memory that a command held at once."""
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        peak = int(match[1]) * 1024 if match else peak  # a process that ended has none
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


SMALL = {"hidden_size": 768, "num_layers": 12, "mlp_size": 3072, "vocab_size": 16_000}
LARGE = {"hidden_size": 1280, "num_layers": 24, "mlp_size": 3456, "vocab_size": 32_000}
"""2.2 GB."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("shape", "most"),
    [(SMALL, 160), (LARGE, 500)],
    ids=["0.5 GB", "2.2 GB"],
)
@pytest.mark.slow
def test_beside_the_arrays_it_takes_less_than_a_file_and_a_third(shape, most, tmp_path: Path):
    tiny = {"hidden_size": 64, "num_layers": 2, "mlp_size": 128, "vocab_size": 256}
    write_llama(tmp_path / "tiny", **tiny, most=10**9)
    arrays = write_llama(tmp_path / "model", **shape, most=most * 10**6)
    largest = max(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))

    for command in ("import", "export"):
        peaks = []
        for name in ("tiny", "model"):
            where = tmp_path / name
            run = where.with_suffix(".run")
            if command == "import":
                peaks.append(peak_bytes("import", where, "--run-dir", run))
            else:
                out = where.with_suffix(".out")
                peaks.append(peak_bytes("export", run, out, "--shard-size", f"{most}MB"))
        beside = peaks[1] - peaks[0] - arrays
        assert beside < 1.3 * largest, (
            f"{command}: {beside / largest:.2f} x the largest file of {largest / 1e6:.0f} MB"
        )
    for path in sorted((tmp_path / "model").glob("*.safetensors")):
        assert filecmp.cmp(path, tmp_path / "model.out" / path.name, shallow=False)
