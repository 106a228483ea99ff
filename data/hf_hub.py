"""Fetches data sets of the Hugging Face hub into a local folder of Parquet files."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from configs.errors import SettingsError
from configs.require import require
from configs.suggested_commands import pip_install
from data.atomic_files import explain_full_disk, locked

_PREFIX = "hf:"


def is_hub(path: str) -> bool:
    return path.startswith(_PREFIX)


def fetch_dataset(path: str, cache_dir: Path) -> Path:
    """Returns a folder with SPLIT.parquet of each split of a data set, fetched now or earlier.

    A fetched folder is never updated, so a run resumes offline and on the same rows; to get a later
    revision, remove the folder. HF_ENDPOINT names another hub, HF_TOKEN a login.

    Raises:
        SettingsError: the package datasets is absent, or the data set cannot be read.
    """
    name, _, config = path.removeprefix(_PREFIX).partition(":")
    require(
        re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None,
        f"data.path={path} must be hf:OWNER/NAME or hf:OWNER/NAME:CONFIG",
    )
    stem = name.split("/")[1]
    folder = cache_dir / f"hub-{stem}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    with locked(cache_dir, folder.name):
        if folder.is_dir():
            return folder
        try:
            import datasets
        except ImportError:
            raise SettingsError(
                f"data.path={path} needs the package datasets: run {pip_install('datasets')}, or "
                "download the files and give their folder"
            ) from None
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with explain_full_disk(temporary):
                found = datasets.load_dataset(name, config or None, streaming=True)
                for split, rows in found.items():
                    rows.to_parquet(temporary / f"{split}.parquet")
        except SettingsError:
            raise
        except Exception as error:  # each layer below raises its own errors
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise SettingsError(
                f"data.path={path} cannot be fetched from the hub: {reason}; check its name and "
                "the network, or give a folder with its files"
            ) from None
        os.replace(temporary, folder)
    return folder
