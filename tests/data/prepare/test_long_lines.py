"""A text that is one line is read in few passes, and in memory that does not grow with it."""

import subprocess
import sys
from pathlib import Path

import pytest
from parts import slowly

PREPARE = """
import sys
import data.prepare.text.txt_jsonl, data.prepare.text.source_files
from launch.cli import main

data.prepare.text.txt_jsonl.RANGE_BYTES = data.prepare.text.source_files.RANGE_BYTES = 2**21
code = main(["prepare", "--num_workers", "1", "--data.tokenizer", "bytes", *sys.argv[1:]])
read = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())["rchar"]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(code, int(status["VmHWM"].split()[0]) * 1024, read)  # ru_maxrss may be that of the parent
"""
NUM_BYTES = 40_000_000


def cost_of(path: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Returns the most bytes of memory that preparing took, and the bytes that it read."""
    command = [sys.executable, "-c", PREPARE, "--data.path", str(path)]
    command += ["--out", str(path.with_suffix(".out"))]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    code, memory, read = map(int, said.stdout.splitlines()[-1].split())
    assert code == 0
    return memory, read


# Of JSON the line, its characters and the text in it are in memory at once. What is read: the file
# twice in each of two passes, and its tokens, of two bytes each, twice for their digests.
@pytest.mark.parametrize(("suffix", "lines_in_memory"), [(".txt", 1.5), *slowly((".jsonl", 4))])
def test_a_line_of_many_parts_is_read_a_few_times_in_bounded_memory(
    tmp_path, environment, suffix, lines_in_memory
):
    costs = []
    for num_bytes in (1000, NUM_BYTES):
        text = "lorem ipsum dolor " * (num_bytes // 18)
        content = text if suffix == ".txt" else f'{{"text": "{text}"}}\n'
        (tmp_path / f"{num_bytes}{suffix}").write_text(content)
        costs.append(cost_of(tmp_path / f"{num_bytes}{suffix}", environment))
    (memory, read), (more_memory, more_read) = costs
    assert more_memory - memory < lines_in_memory * NUM_BYTES
    assert more_read - read < 12 * NUM_BYTES
