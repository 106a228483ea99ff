"""The plan of a preparation: settings and corpus, on disk for every worker."""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.data import DUPLICATE_STEPS, PrepareConfig
from configs.require import require
from data.prepare.shards import FORMAT_VERSION
from data.prepare.text.corpus import Corpus, open_overlap
from data.tokenizers.tokenizer import Tokenizer, load_tokenizer

PLAN, TOKENIZER = "plan.json", "tokenizer.json"


@dataclass(frozen=True)
class Plan:
    """The settings and the corpus of a preparation."""

    config: PrepareConfig
    corpus: Corpus
    work: Path
    """The folder of unfinished work, within the prepared folder."""

    def path(self, stage: str, task: int, suffix: str) -> Path:
        return self.work / f"{stage}-{task:05d}.{suffix}"

    @property
    def local_steps(self) -> tuple[str, ...]:
        return tuple(step for step in self.config.clean if step not in DUPLICATE_STEPS)

    @property
    def finds_duplicates(self) -> bool:
        return len(self.local_steps) < len(self.config.clean)


def plan_content(plan: Plan) -> dict[str, Any]:
    """Returns the content of plan.json; a preparation resumes only if it is equal."""
    texts = [open_overlap(plan.config, path)[1] for path in plan.config.decontaminate_from]
    for text in texts:
        require(
            not text.has_tokens,
            f"data.decontaminate_from={text.description} must be text, but holds tokens",
        )
    content = {
        "format_version": FORMAT_VERSION,
        "config": asdict(plan.config),
        "corpus": asdict(plan.corpus),
        "decontaminate": [text.digest() for text in texts],
    }
    return json.loads(json.dumps(content))


def changed_at(work: str, name: str) -> int:
    """Returns when a file of a work folder was written, to invalidate caches of processes."""
    return (Path(work) / name).stat().st_mtime_ns


def read_plan(work: str) -> Plan:
    return _read_plan(work, changed_at(work, PLAN))


@functools.lru_cache(maxsize=4)
def _read_plan(work: str, changed_at: int) -> Plan:
    content = json.loads((Path(work) / PLAN).read_text())
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content["config"].items()
    }
    return Plan(PrepareConfig(**fields), Corpus.from_json(content["corpus"]), Path(work))


def tokenizer_of(work: str) -> Tokenizer:
    return _load_tokenizer(work, changed_at(work, TOKENIZER))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(work: str, changed_at: int) -> Tokenizer:
    entry = json.loads((Path(work) / TOKENIZER).read_text())
    content = (Path(work).parent / "tokenizer").read_bytes()
    return load_tokenizer(entry["kind"], content, entry["special"])
