"""Turns a corpus into a prepared folder: a tokenizer, shards of tokens, and a manifest.

Three passes over the tasks of the corpus, each in parallel: scan (clean and count), sample (where a
tokenizer is learned) and write. What each leaves on disk is whole or not there, so that a killed
preparation goes on where it stopped, and the result does not depend on who did which task. The
manifest is written last: a folder without one was not finished.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.check import require
from configs.data import PrepareConfig
from data.atomic_files import file_entry, no_space_is_told, whole_file, write_json
from data.hf_hub import is_hub
from data.object_store import is_remote
from data.prepare.cleaning.clean import merge_reports
from data.prepare.deduplicate import drop_repeats
from data.prepare.engine import Workers
from data.prepare.plan import PLAN, TOKENIZER, Plan, plan_content
from data.prepare.shards import BLOCK_LEN, FORMAT_VERSION
from data.prepare.tasks import sample, scan, write
from data.prepare.text.corpus import SPLITS, Corpus, open_corpus
from data.prepare.text.read_report import NUM_EXAMPLES
from data.prepare.validation_split import Settled, settle_split
from data.token_store import FILES, MANIFEST, REPORT
from data.tokenizers.tokenizer import Tokenizer, tokenizer_digest

WORK = ".work"
_OURS = (
    WORK,
    "train-*",
    "validation-*",
    "tokenizer*",
    f"{REPORT}*",
    f"{FILES}*",
    f"{MANIFEST}.tmp-*",
)
_NUM_FILES = 1000  # of which the report says what became of them

Say = Callable[[str], None]
"""Is told in a line what happens."""
Watch = Callable[[str, int, int], None]
"""Is told (stage, bytes of text done, bytes in all) as the work goes on."""


class Preparation:
    """One corpus on its way into one folder."""

    def __init__(
        self,
        config: PrepareConfig,
        folder: Path,
        workers: Workers,
        watch: Watch,
        made_with: PrepareConfig | None = None,
        corpus: Corpus | None = None,
    ):
        """Begins, or finds what an earlier process has left of the same preparation.

        Args:
            made_with: the settings as they were given, where config.path is a local copy.
            corpus: what config.path named when it was looked at; None looks now.

        Raises:
            SettingsError: there is nothing to read, or the folder holds something else.
        """
        self.config, self.folder = config, folder
        self._made_with = made_with or config
        self.corpus = corpus or open_corpus(config)
        self._check_unchanged()
        require(
            not (self.corpus.has_tokens and config.clean),
            f"data.clean={' '.join(config.clean)} must not be given: data.path={config.path} holds "
            "tokens, and only text can be cleaned",
        )
        self._workers, self.watch = workers, watch
        self._plan = Plan(config, self.corpus, folder / WORK)
        self._scans: list[dict[str, Any]] = []
        self._duplicates: dict[str, Any] = {}
        self.settled = Settled("nothing yet", 0, (), 0)
        self._begin()

    def _begin(self) -> None:
        path = self._plan.work / PLAN
        content = plan_content(self._plan)
        if path.is_file() and json.loads(path.read_text()) == content:
            self._remove_unfinished()
            return
        self._clear()
        with no_space_is_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)

    def _clear(self) -> None:
        """Removes what is left of other settings or of another text, and nothing else."""
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
        (self._plan.work / PLAN).unlink(missing_ok=True)  # first: nothing may be gone on with
        for name in names:
            if name != WORK:
                (self.folder / name).unlink()
        remove_work(self.folder)  # last, for it says that the rest is ours

    def _remove_unfinished(self) -> None:
        for left in self.folder.rglob("*.tmp-*"):
            left.unlink(missing_ok=True)  # its process may be about to end

    def scan(self, tokenizer: Tokenizer | None = None) -> None:
        """Cleans and counts every task, finds duplicates among all of them, and settles the split.

        Args:
            tokenizer: must be given where the text is tokens, for its separator.
        """
        if self.corpus.has_tokens:
            assert tokenizer is not None
            self._put_tokenizer(tokenizer)
        self._scans = self._run("scan", "scan", scan, [()] * len(self.corpus.tasks))
        if self._plan.finds_duplicates:
            self._duplicates = drop_repeats(self._plan, self._scans, self._first_lines())
        self.settled = settle_split(self._plan, self._scans)
        require(
            self.settled.num_characters > 0,
            f"data.path={self.config.path} holds no text"
            + (" after cleaning" if self.config.clean else "")
            + "; give one that is not empty",
        )

    @property
    def description(self) -> str:
        """What is prepared, as it was given where that is not on this machine."""
        given = self._made_with.path
        return given if given and (is_remote(given) or is_hub(given)) else self.corpus.description

    @property
    def marks(self) -> list[str]:
        """What was found of marks between documents of a .txt, in words."""
        found = Counter[str]()
        for scan_ in self._scans:
            found.update(scan_["marks"])
        separator = self.config.document_separator
        require(
            separator is None or bool(found),
            f"data.document_separator={separator} must stand in some .txt of data.path="
            f"{self.config.path}, but does not; leave it out",
        )
        return [
            f"text has {number:,} {mark}, at each of which a document ends"
            if separator
            else f"text has {number:,} {mark}, which are text like any other; to end documents "
            f"there: --data.document_separator '{mark}'"
            for mark, number in sorted(found.items())
        ]

    @property
    def alphabet(self) -> set[str]:
        """All characters of the text, where the tokenizer is one of characters."""
        return set().union(*(scan["alphabet"] for scan in self._scans))

    @property
    def num_line_characters(self) -> int:
        """Characters that a tokenizer may learn from, newlines not counted."""
        total = sum(scan["line_characters"] for scan in self._scans)
        num_read = sum(scan["learnable"] for scan in self._scans)
        return round(total * sum(self.settled.num_train) / max(1, num_read))

    def sample(self, stride: int) -> list[str]:
        """Returns every stride-th line of the training text."""
        first_lines = np.cumsum([0, *(scan["lines"] for scan in self._scans)]).tolist()
        calls = [
            (str(self._plan.work), task, first_lines[task], stride)
            for task, num_train in enumerate(self.settled.num_train)
            if num_train
        ]
        found = dict(self._workers.run(sample, calls))
        return [line for task in sorted(found) for line in found[task]]

    def write(self, tokenizer: Tokenizer, notes: str = "") -> None:
        """Writes every shard, then the manifest, and removes what was only needed on the way.

        Args:
            notes: what the report says of how the tokenizer was learned.

        Raises:
            SettingsError: a split has no text, or a file has changed since it was found.
        """
        self._put_tokenizer(tokenizer)
        calls = [(first_lines,) for first_lines in self._first_lines()]
        shards = self._run("tokenize", "shards", write, calls)
        self._remove_unfinished()  # of a worker that was killed, and whose task another has done
        self._check_unchanged()
        splits = {split: self._split(split, shards) for split in SPLITS}
        fraction = self.settled.fraction
        for split, is_wanted in (("train", fraction < 1), ("validation", fraction > 0)):
            require(
                not is_wanted or splits[split]["tokens"] > 1,
                f"data.path={self.config.path} has too little text: none is left for the {split} "
                "split; give more text, or another --data.validation_fraction",
            )
        write_json(self.folder / REPORT, {**self._report(), "learning": notes})
        write_json(
            self.folder / FILES,
            [
                {
                    "name": file.name,
                    "kind": file.kind,
                    "size": file.num_bytes,
                    "split": file.split,
                    "dtype": file.dtype,
                }
                for file in self.corpus.files
            ],
        )
        manifest = {
            "format_version": FORMAT_VERSION,
            "block_len": BLOCK_LEN,
            "source": self.description,
            "validation": {"rule": self.settled.rule, "fraction": self.settled.fraction},
            "num_unread": sum(sum(scan["unread"].values()) for scan in self._scans),
            "tokenizer": {
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "separator": tokenizer.separator,
                "special": dict(tokenizer.special),
                "sha256": tokenizer_digest(tokenizer),
            },
            "splits": splits,
            "files": [file_entry(self.folder / name) for name in ("tokenizer", REPORT, FILES)],
            "made_with": asdict(self._made_with),
        }
        write_json(self.folder / MANIFEST, manifest)
        remove_work(self.folder)

    def _check_unchanged(self) -> None:
        changed = self.corpus.changed_files()
        require(
            not changed,
            f"data.path={self.config.path} has changed while it was read, in "
            f"{', '.join(changed[:3])}; give the same command again, which begins anew",
        )

    def _put_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Puts the tokenizer where workers find it; what another one has written is made again."""
        path, said_path = self.folder / "tokenizer", self._plan.work / TOKENIZER
        content = tokenizer.content()
        said = {"kind": tokenizer.kind, "special": dict(tokenizer.special)}
        if (
            path.is_file()
            and said_path.is_file()
            and (path.read_bytes(), json.loads(said_path.read_text())) == (content, said)
        ):
            return
        for stage in ("scan", "shards") if self.corpus.has_tokens else ("shards",):
            for result in self._plan.work.glob(f"{stage}-*.json"):
                result.unlink()
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        write_json(said_path, said)

    def _run(
        self,
        shown: str,
        stage: str,
        function: Callable[..., dict[str, Any]],
        arguments: Sequence[tuple[Any, ...]],
    ) -> list[dict[str, Any]]:
        """Returns what a function makes of each task; what is there already is not made again."""
        results = [self._result(stage, task) for task in range(len(self.corpus.tasks))]
        missing = [task for task, result in enumerate(results) if result is None]
        sizes = [_num_bytes(self.corpus, task) for task in range(len(results))]
        done = sum(sizes) - sum(sizes[task] for task in missing)
        self.watch(shown, done, sum(sizes))
        calls = [(str(self._plan.work), task, *arguments[task]) for task in missing]
        for i, result in self._workers.run(function, calls):
            results[missing[i]] = result
            done += sizes[missing[i]]
            self.watch(shown, done, sum(sizes))
        return [result for result in results if result is not None]

    def _result(self, stage: str, task: int) -> dict[str, Any] | None:
        path = self._plan.path(stage, task, "json")
        return json.loads(path.read_text()) if path.is_file() else None

    def _first_lines(self) -> list[list[int]]:
        """Returns for each part of each task the lines of its file in the parts before."""
        before: dict[int, int] = {}
        first_lines = []
        for parts, scan_ in zip(self.corpus.tasks, self._scans, strict=True):
            first_lines.append([])
            for part, num_lines in zip(parts, scan_["part_lines"], strict=True):
                first_lines[-1].append(before.get(part.file, 0))
                before[part.file] = before.get(part.file, 0) + num_lines
        return first_lines

    def _split(self, split: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
        entries = [entry[split] for entry in shards if split in entry]
        counts = {
            name: sum(entry[name] for entry in entries)
            for name in ("tokens", "documents", "characters", "bytes")
        }
        counts["tokens"] += bool(entries)  # the separator that ends the stream is in no shard
        return {**counts, "shards": entries}

    def _report(self) -> dict[str, Any]:
        """Returns what was left out or changed, and why, with examples."""
        unread, documents = (
            sum((Counter(scan[name]) for scan in self._scans), Counter[str]())
            for name in ("unread", "by_file")
        )
        examples = [line for scan_ in self._scans for line in scan_["unread_examples"]]
        return {
            "notes": [*self.corpus.notes, *self.marks],
            "files": [
                {
                    "file": file.name,
                    "read_as": file.kind,
                    "split": file.split or "a fraction validates",
                    "documents": documents[file.name],
                    "left_out": unread[file.name],
                }
                for file in self.corpus.files[:_NUM_FILES]
            ],
            "not_read": self.corpus.not_read,
            "unread": dict(unread),
            "unread_examples": examples[:NUM_EXAMPLES],
            "cleaning": merge_reports(self._cleaning()),
            "duplicates": self._duplicates,
        }

    def _cleaning(self) -> list[list[dict[str, Any]]]:
        """Returns the report of each task, its examples under the names of their documents."""
        for task, (scan_, first_lines) in enumerate(
            zip(self._scans, self._first_lines(), strict=True)
        ):
            for step in scan_["cleaning"]:
                for example in (*step["changed_examples"], *step["dropped_examples"]):
                    part, number = map(int, example["document"].split(":"))
                    example["document"] = self.corpus.document_name(
                        self.corpus.tasks[task][part].file, first_lines[part] + number
                    )
        return [scan_["cleaning"] for scan_ in self._scans]


def remove_work(folder: Path) -> None:
    """Removes what was only needed on the way; of a finished folder a killed process may leave it.

    One process at a time may do so.
    """
    if (folder / WORK).exists():
        shutil.rmtree(folder / WORK)


def _num_bytes(corpus: Corpus, task: int) -> int:
    """Returns the bytes of the files that a task reads."""
    stops = [
        corpus.files[p.file].num_bytes if p.stop is None else p.stop for p in corpus.tasks[task]
    ]
    return sum(stop - part.start for stop, part in zip(stops, corpus.tasks[task], strict=True))
