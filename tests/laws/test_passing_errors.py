"""Only absence and wrong content are damage: an error that may pass renames and removes nothing."""

import errno
import os
from pathlib import Path

import pytest
from faulty_files import run_faulty
from small_checkpoints import CONFIG, flip_byte, write_checkpoint

import train.checkpoints.verify
from configs.errors import IntegrityError, Unavailable
from train.checkpoints.context import CheckpointContext
from train.checkpoints.manifest import read_manifest
from train.checkpoints.recovery import newest_valid
from train.checkpoints.verify import verify

ERRORS = [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.atomic_files._WAITS_SEC", (0.0, 0.0))


@pytest.fixture
def context(tmp_path: Path) -> CheckpointContext:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    return CheckpointContext(tmp_path, CONFIG)


def fail(monkeypatch: pytest.MonkeyPatch, number: int, *, times: int, of: str) -> None:
    """Lets reading a manifest, or the digest of any other file, fail so often."""
    left = times

    def maybe(original):
        def read(path: Path):
            nonlocal left
            if left > 0 and (path.name == of or of == "data"):
                left -= 1
                raise OSError(number, os.strerror(number), str(path))
            return original(path)

        return read

    if of == "manifest.json":
        monkeypatch.setattr(Path, "read_bytes", maybe(Path.read_bytes))
    else:
        original = train.checkpoints.verify.digest_file
        monkeypatch.setattr(train.checkpoints.verify, "digest_file", maybe(original))


@pytest.mark.parametrize("of", ["manifest.json", "data"])
@pytest.mark.parametrize("number", ERRORS)
def test_an_error_that_passes_is_no_damage(context, monkeypatch, number: int, of: str):
    fail(monkeypatch, number, times=2, of=of)
    found = newest_valid(context)
    assert found is not None
    assert found.progress.step == 2
    assert sorted(path.name for path in context.folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("of", ["manifest.json", "data"])
@pytest.mark.parametrize("number", ERRORS)
def test_an_error_that_stays_ends_with_75_and_changes_nothing(context, monkeypatch, number, of):
    fail(monkeypatch, number, times=10**6, of=of)
    with pytest.raises(Unavailable) as ended:
        newest_valid(context)
    assert ended.value.exit_code == 75
    message = str(ended.value)
    assert str(context.folder / "2") in message
    assert os.strerror(number) in message
    assert "remove" not in message
    assert sorted(path.name for path in context.folder.iterdir()) == ["1", "2"]


def test_absence_and_wrong_content_are_damage(context):
    path = context.folder / "2" / "manifest.json"
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        read_manifest(context.folder, 2)
    flip_byte(next((context.folder / "1").rglob("d/*")))
    with pytest.raises(IntegrityError, match="sha256"):
        verify(context.folder, 1)


HOLD = """
from train.record.run_folder import RunFolder
def hold():
    with RunFolder(Path(sys.argv[1])).held():
        return 0
sys.exit(guarded(hold))
"""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_run_folder_without_locks_is_refused_in_words(tmp_path, number: int):
    ended = run_faulty(tmp_path, HOLD, tmp_path / "run", flock=number)
    assert ended.returncode == 2, ended.stderr
    for part in (str(tmp_path / "run"), os.strerror(number), "-o flock"):
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr
