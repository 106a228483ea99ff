"""Texts, prepared folders and runs, as small as `./tessera inspect` can be tested with."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from commands import call
from small_data import open_quietly, steps_of
from small_runs import tiny_run

from launch.train_settings import parse
from train.checkpoints.manifest import Manifest, RunProgress, write_manifest
from train.record.run_folder import RunFolder

HOSTILE_NAME = "<script>alert(\"1\")<b onload='x'>.txt"
HOSTILE_TEXT = "</pre><script>alert('hi')</script> \"&amp; \x1b[31mred\x07 \u202e[bold]x[/bold]\n"
_VOID = ("meta", "link", "br", "hr", "img", "input")


def write_texts(folder: Path) -> dict[str, str]:
    """Writes two folders of text, ASCII but for one; returns the documents by source and name."""
    texts = {"a/one.txt": "the first file. " * 40}
    lines = [f"line {i} of many, " * (i % 7 + 1) for i in range(60)]
    records = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    texts |= {f"b/lines.jsonl:{i + 1}": line for i, line in enumerate(lines)}
    texts |= {"b/nested/two.txt": "another file; " * 30}
    (folder / "a").mkdir()
    (folder / "b" / "nested").mkdir(parents=True)
    (folder / "a" / "one.txt").write_text(texts["a/one.txt"])
    (folder / "b" / "lines.jsonl").write_text(records)
    (folder / "b" / "nested" / "two.txt").write_text(texts["b/nested/two.txt"])
    return texts


def prepare(path: Path, out: Path, *more: str) -> Path:
    """Returns a folder that `./tessera prepare` has made of a text, tokens being bytes."""
    arguments = ["prepare", "--data.path", str(path), "--out", str(out), "--num_workers", "1"]
    code, output = call(*arguments, "--data.tokenizer", "bytes", *more)
    assert code == 0, output
    return out


def begin_run(run: Path, *more: str, passed_over: tuple[int, ...] | None = None) -> RunFolder:
    """Returns a run that has not trained; with a list of batches it has a checkpoint of step 2."""
    _, parsed = parse(tiny_run("--train.num_steps", "9", *more))
    folder = RunFolder(run)
    run.mkdir()
    folder.begin(parsed.config, {})
    if passed_over is not None:
        config = parsed.config
        steps = steps_of(
            config.data,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            passed_over=passed_over,
        )
        data = open_quietly(parsed.config.data, Path("runs/.data"))
        checkpoint = folder.checkpoints / "2"
        checkpoint.mkdir()
        progress = RunProgress(
            step=2,
            tokens=0,
            data_sha256=data.digest,
            data_folders=data.folders,
            step_ranges=(steps,),
        )
        write_manifest(checkpoint, Manifest(progress=progress, settings={}, files={}))
    return folder


def inspect_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Returns the object that `./tessera inspect ... --json` ends with."""
    found, output = call("inspect", *arguments, "--json")
    assert found == code, output
    return json.loads(output.splitlines()[-1])


class Page(HTMLParser):
    """What a browser would find in a page; it fails where an element is not closed in its turn."""

    def __init__(self, content: str):
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
