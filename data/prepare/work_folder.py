"""The .work folder of an unfinished preparation: its plan, and the result of each finished task."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.require import require
from data.atomic_files import atomic_write, explain_full_disk, write_json
from data.prepare.engine import Workers
from data.prepare.plan import PLAN, TOKENIZER, Plan, plan_content
from data.prepare.text.source_files import size_of
from data.token_store import FILES, MANIFEST, REPORT
from data.tokenizers.tokenizer import Tokenizer

WORK = ".work"
_OURS = f"{WORK} train-* validation-* tokenizer* {REPORT}* {FILES}* {MANIFEST}.tmp-*".split()

OnProgress = Callable[[str, int, int], None]
"""Takes (stage, finished bytes of text, all bytes) while a preparation runs."""


class WorkFolder:
    """The results of tasks on disk, so that a killed preparation resumes where it stopped."""

    def __init__(self, plan: Plan, workers: Workers, on_progress: OnProgress):
        """Resumes an earlier process with the same plan; removes the work of any other plan."""
        self._plan, self._workers, self._on_progress = plan, workers, on_progress
        self.folder = plan.work.parent
        path, content = plan.work / PLAN, plan_content(plan)
        if path.is_file() and json.loads(path.read_text()) == content:
            self.remove_unfinished()
            return
        self._clear()
        with explain_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)

    def _clear(self) -> None:
        require(
            self.folder.is_dir() or not self.folder.exists(),
            f"--out={self.folder} must be a new folder, but is a file",
        )
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        others = [n for n in names if WORK not in names or not any(map(Path(n).match, _OURS))]
        require(
            not others,
            f"--out={self.folder} must be a new folder, but it has {', '.join(others[:3])}",
        )
        (self._plan.work / PLAN).unlink(missing_ok=True)  # first: a part of it must not be resumed
        for name in names:
            if name != WORK:
                (self.folder / name).unlink()
        remove_work(self.folder)  # last: it marks the other files as ours

    def remove_unfinished(self) -> None:
        for left in self.folder.rglob("*.tmp-*"):
            left.unlink(missing_ok=True)  # its process may be about to end

    def put_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Writes the tokenizer for the workers, and removes results of another tokenizer."""
        path, entry_path = self.folder / "tokenizer", self._plan.work / TOKENIZER
        content = tokenizer.content()
        entry = {"kind": tokenizer.kind, "special": dict(tokenizer.special)}
        if (
            path.is_file()
            and entry_path.is_file()
            and (path.read_bytes(), json.loads(entry_path.read_text())) == (content, entry)
        ):
            return
        for stage in ("scan", "shards") if self._plan.corpus.has_tokens else ("shards",):
            for result in self._plan.work.glob(f"{stage}-*.json"):
                result.unlink()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        write_json(entry_path, entry)

    def run(
        self,
        shown: str,
        stage: str,
        function: Callable[..., dict[str, Any]],
        arguments: Sequence[tuple[Any, ...]],
    ) -> list[dict[str, Any]]:
        """Returns the result of a function for each task; runs it where no result is on disk."""
        corpus = self._plan.corpus
        results = [self._result(stage, task) for task in range(len(corpus.tasks))]
        missing = [task for task, result in enumerate(results) if result is None]
        sizes = [sum(size_of(part, corpus.files) for part in task) for task in corpus.tasks]
        done = sum(sizes) - sum(sizes[task] for task in missing)
        self._on_progress(shown, done, sum(sizes))
        calls = [(str(self._plan.work), task, *arguments[task]) for task in missing]
        for i, result in self._workers.run(function, calls):
            results[missing[i]] = result
            done += sizes[missing[i]]
            self._on_progress(shown, done, sum(sizes))
        return [result for result in results if result is not None]

    def _result(self, stage: str, task: int) -> dict[str, Any] | None:
        path = self._plan.path(stage, task, "json")
        return json.loads(path.read_text()) if path.is_file() else None


def remove_work(folder: Path) -> None:
    """Removes .work; a process that is killed at the end may leave it in a finished folder.

    Only one process at a time may do so.
    """
    if (folder / WORK).exists():
        shutil.rmtree(folder / WORK)
