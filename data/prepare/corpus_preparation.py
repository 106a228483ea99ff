"""Turns a corpus into a prepared folder: a tokenizer, shards of tokens, and a manifest.

Three passes over the tasks of the corpus, each in parallel: scan (clean and count), sample (lines
to train a tokenizer on) and write. Each result on disk is complete or absent, so a killed
preparation resumes where it stopped, and the result does not depend on which process ran which
task. The manifest is written last: a folder without one is unfinished.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.data import PrepareConfig
from configs.errors import SettingsError
from configs.require import require
from data.atomic_files import file_entry, write_json
from data.hf_hub import is_hub
from data.object_store import is_remote
from data.prepare.cleaning.cleaner import merge_reports
from data.prepare.deduplicate import drop_duplicates
from data.prepare.engine import Workers
from data.prepare.plan import Plan
from data.prepare.shards import BLOCK_LEN, FORMAT_VERSION
from data.prepare.tasks import sample, scan, write
from data.prepare.text.corpus import SPLITS, Corpus, open_corpus
from data.prepare.text.text_records import NUM_EXAMPLES
from data.prepare.validation_split import ValidationSplit, choose_split
from data.prepare.work_folder import WORK, OnProgress, WorkFolder, remove_work
from data.token_store import FILES, MANIFEST, REPORT
from data.tokenizers.tokenizer import Tokenizer, lossy_texts, tokenizer_digest
from data.tokenizers.train_tokenizer import (
    SAMPLE_CHARACTERS,
    UNK_CHARACTER,
    character_tokenizer,
    train_sentencepiece,
)

Log = Callable[[str], None]
"""Prints a line about what happens."""

_NUM_FILES = 1000  # that the report lists


class Preparation:
    """The preparation of one corpus into one folder."""

    def __init__(
        self,
        config: PrepareConfig,
        folder: Path,
        workers: Workers,
        on_progress: OnProgress,
        made_with: PrepareConfig | None = None,
        corpus: Corpus | None = None,
    ):
        """Begins the preparation, or resumes that of an earlier process.

        Args:
            made_with: the settings as given, where config.path is a local copy.
            corpus: the corpus of config.path, if it is open already.
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
        self._plan = Plan(config, self.corpus, folder / WORK)
        self._scans: list[dict[str, Any]] = []
        self._duplicates: dict[str, Any] = {}
        self.split = ValidationSplit("none yet", 0, (), 0)
        self._workers = workers
        self.on_progress = on_progress
        self._work = WorkFolder(self._plan, workers, on_progress)

    def scan(self, tokenizer: Tokenizer | None = None) -> None:
        """Cleans and counts every task, finds duplicates among all, and chooses the split."""
        if self.corpus.has_tokens:
            assert tokenizer is not None
            self._work.put_tokenizer(tokenizer)
        self._scans = self._work.run("scan", "scan", scan, [()] * len(self.corpus.tasks))
        if self._plan.finds_duplicates:
            self._duplicates = drop_duplicates(self._plan, self._scans, self._first_lines())
        self.split = choose_split(self._plan, self._scans)
        require(
            self.split.num_characters > 0,
            f"data.path={self.config.path} holds no text"
            + (" after cleaning" if self.config.clean else "")
            + "; give one that is not empty",
        )

    @property
    def description(self) -> str:
        """What is prepared: the remote path as given, or the local corpus."""
        given = self._made_with.path
        return given if given and (is_remote(given) or is_hub(given)) else self.corpus.description

    @property
    def separator_notes(self) -> list[str]:
        found = Counter[str]()
        for scan_ in self._scans:
            found.update(scan_["marks"])
        separator = self.config.document_separator
        require(
            separator is None or bool(found),
            f"data.document_separator={separator} must occur in a .txt of data.path="
            f"{self.config.path}, but does not; remove the setting",
        )
        return [
            f"text has {number:,} {name}, each of which ends a document"
            if separator
            else f"text has {number:,} {name}, read as ordinary text; to end documents there, pass "
            f"--data.document-separator '{name}'"
            for name, number in sorted(found.items())
        ]

    @property
    def alphabet(self) -> set[str]:
        """All characters of the text, for the tokenizer `characters`; empty for any other."""
        return set().union(*(scan["alphabet"] for scan in self._scans))

    @property
    def num_line_characters(self) -> int:
        """Characters to train a tokenizer on, newlines not counted."""
        total = sum(scan["line_characters"] for scan in self._scans)
        num_read = sum(scan["learnable"] for scan in self._scans)
        return round(total * sum(self.split.num_train) / max(1, num_read))

    def sample(self, stride: int) -> list[str]:
        first_lines = np.cumsum([0, *(scan["lines"] for scan in self._scans)]).tolist()
        calls = [
            (str(self._plan.work), task, first_lines[task], stride)
            for task, num_train in enumerate(self.split.num_train)
            if num_train
        ]
        found = dict(self._workers.run(sample, calls))
        return [line for task in sorted(found) for line in found[task]]

    def write(self, tokenizer: Tokenizer, notes: str = "") -> None:
        """Writes every shard, the report with notes, the manifest; removes the work folder."""
        self._work.put_tokenizer(tokenizer)
        calls = [(first_lines,) for first_lines in self._first_lines()]
        shards = self._work.run("tokenize", "shards", write, calls)
        self._work.remove_unfinished()  # of a killed worker whose task another has run
        self._check_unchanged()
        splits = {split: self._split(split, shards) for split in SPLITS}
        fraction = self.split.fraction
        for split, is_wanted in (("train", fraction < 1), ("validation", fraction > 0)):
            require(
                not is_wanted or splits[split]["tokens"] > 1,
                f"data.path={self.config.path} has too little text: none is left for the {split} "
                "split; give more text, or another --data.validation-fraction",
            )
        write_json(self.folder / REPORT, {**self._report(), "learning": notes})
        files = [
            {
                "name": f.name,
                "kind": f.kind,
                "size": f.num_bytes,
                "split": f.split,
                "dtype": f.dtype,
            }
            for f in self.corpus.files
        ]
        write_json(self.folder / FILES, files)
        manifest = {
            "format_version": FORMAT_VERSION,
            "block_len": BLOCK_LEN,
            "source": self.description,
            "validation": {"rule": self.split.rule, "fraction": self.split.fraction},
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
            f"data.path={self.config.path} changed while it was read, in "
            f"{', '.join(changed[:3])}; run the same command again to start over",
        )

    def _first_lines(self) -> list[list[int]]:
        """Returns, for each byte range of each task, the number of lines before it in its file."""
        before: dict[int, int] = {}
        first_lines = []
        for ranges, scan_ in zip(self.corpus.tasks, self._scans, strict=True):
            first_lines.append([])
            for byte_range, num_lines in zip(ranges, scan_["part_lines"], strict=True):
                file = byte_range.file
                first_lines[-1].append(before.get(file, 0))
                before[file] = before.get(file, 0) + num_lines
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
        unread, documents = (
            sum((Counter(scan[name]) for scan in self._scans), Counter[str]())
            for name in ("unread", "by_file")
        )
        examples = [line for scan_ in self._scans for line in scan_["unread_examples"]]
        return {
            "notes": [*self.corpus.notes, *self.separator_notes],
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
        """Returns the cleaning report of each task, with document names in its examples."""
        for task, (scan_, first_lines) in enumerate(
            zip(self._scans, self._first_lines(), strict=True)
        ):
            for step in scan_["cleaning"]:
                for example in (*step["changed_examples"], *step["dropped_examples"]):
                    index, number = map(int, example["document"].split(":"))
                    example["document"] = self.corpus.document_name(
                        self.corpus.tasks[task][index].file, first_lines[index] + number
                    )
        return [scan_["cleaning"] for scan_ in self._scans]


def prepare(preparations: list[Preparation], tokenizer: Tokenizer | None, log: Log) -> None:
    notes = ""
    for preparation in preparations:
        others = ", ".join(f"{n} {name}" for name, n in preparation.corpus.not_read.items())
        note = f"; other files are ignored: {others}" if others else ""
        log(f"preparing {preparation.description}{note}")
        for line in preparation.corpus.notes:
            log(f"note: {line}")
        if tokenizer is None and preparation.corpus.has_tokens:
            config = preparation.config
            raise SettingsError(
                f"data.tokenizer={config.tokenizer} is trained on text, but data.path="
                f"{config.path} holds tokens: give the tokenizer that made them, a .model or a "
                "tokenizer.json"
            )
        preparation.scan(tokenizer)
        for line in preparation.separator_notes:
            log(f"note: {line}")
        log(preparation.split.describe())
    if preparations and tokenizer is None:
        num = sum(preparation.num_line_characters for preparation in preparations)
        preparations[0].on_progress("train the tokenizer", 0, num)
        tokenizer, notes = _train(preparations)
        preparations[0].on_progress("train the tokenizer", num, num)
        log(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} tokens{notes and f'; {notes}'}")
    if preparations and tokenizer is not None and (changed := lossy_texts(tokenizer)):
        log(
            "warning: this tokenizer does not decode every text to the original; it changes "
            f"{', '.join(changed)}"
        )
    for preparation in preparations:
        assert tokenizer is not None
        preparation.write(tokenizer, notes)


def _train(preparations: list[Preparation]) -> tuple[Tokenizer, str]:
    """Returns a tokenizer trained on all texts, and notes on the text it was not trained on."""
    config = preparations[0].config
    if config.tokenizer == "characters":
        return character_tokenizer(set().union(*(p.alphabet for p in preparations)), config), ""
    num_characters = sum(preparation.num_line_characters for preparation in preparations)
    stride = -(-num_characters // SAMPLE_CHARACTERS) or 1
    lines = [line for preparation in preparations for line in preparation.sample(stride)]
    num_split = sum(UNK_CHARACTER in line for line in lines)
    notes = [f"trained on one line of {stride}, in chunks of 1000 characters"] * (stride > 1)
    notes += [f"{num_split:,} lines of its training text are split at U+2585"] * bool(num_split)
    return train_sentencepiece(lines, config), ", ".join(notes)
