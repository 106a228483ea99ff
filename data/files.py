"""Files that are there whole or not at all, and their digests."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of the bytes of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that a reader, or a restart after a kill, sees all of it or none."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
