"""What is prepared and how: the plan on disk that every worker reads."""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.check import require
from configs.data import DUPLICATE_STEPS, PrepareConfig
from data.prepare.shards import FORMAT_VERSION
from data.prepare.text.corpus import Corpus, open_overlap
from data.tokenizers.tokenizer import Tokenizer, load_tokenizer

PLAN, TOKENIZER = "plan.json", "tokenizer.json"


@dataclass(frozen=True)
class Plan:
    """What is prepared and how, as every worker reads it."""

    config: PrepareConfig
    corpus: Corpus
    work: Path
    """Folder of what is not finished; the prepared folder is the one above."""

    def path(self, stage: str, task: int, suffix: str) -> Path:
        """Returns where a stage of a task leaves its result."""
        return self.work / f"{stage}-{task:05d}.{suffix}"

    @property
    def local_steps(self) -> tuple[str, ...]:
        """The cleaning steps that look at one document at a time."""
        return tuple(step for step in self.config.clean if step not in DUPLICATE_STEPS)

    @property
    def finds_duplicates(self) -> bool:
        """Whether documents are compared with one another."""
        return len(self.local_steps) < len(self.config.clean)


def plan_content(plan: Plan) -> dict[str, Any]:
    """Returns what has to be the same for a preparation to go on, as JSON gives it back."""
    texts = [open_overlap(plan.config, path)[1] for path in plan.config.decontaminate_from]
    for text in texts:
        require(
            not text.has_tokens,
            f"data.decontaminate_from={text.description} must be text, but holds tokens",
        )
    content = {
        "format_version": FORMAT_VERSION,
        "config": asdict(plan.config),
        "corpus": plan.corpus.to_json(),
        "decontaminate": [text.digest() for text in texts],
    }
    return json.loads(json.dumps(content))


def changed_at(work: str, name: str) -> int:
    """Returns when a file of a work folder was written, so that a process remembers no old one."""
    return (Path(work) / name).stat().st_mtime_ns


def read_plan(work: str) -> Plan:
    """Returns the plan in a work folder."""
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
    """Returns the tokenizer of the folder that is made here."""
    return _load_tokenizer(work, changed_at(work, TOKENIZER))


@functools.lru_cache(maxsize=4)
def _load_tokenizer(work: str, changed_at: int) -> Tokenizer:
    said = json.loads((Path(work) / TOKENIZER).read_text())
    content = (Path(work).parent / "tokenizer").read_bytes()
    return load_tokenizer(said["kind"], content, said["special"])
