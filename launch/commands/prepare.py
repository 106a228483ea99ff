"""`./tessera prepare`: from raw text to a folder of tokens that any run can read."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from configs.data import PrepareConfig
from configs.errors import SettingsError, Stopped
from configs.require import require, require_at_least
from configs.suggested_commands import tessera
from data.atomic_files import explain_full_disk, locked
from data.object_store import is_remote
from data.open_data import given_tokenizer, local_path
from data.prepare.corpus_preparation import Log, Preparation, prepare
from data.prepare.engine import Engine, Workers
from data.prepare.text.corpus import open_corpus
from data.prepare.work_folder import remove_work
from data.remote_folders import is_prepared, push_folder
from data.token_store import MANIFEST, TokenStore, open_store
from launch.absolute_paths import RUNS
from launch.arguments import parse_arguments
from launch.progress_bar import Progress
from train.record.eta import duration


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Turns raw text into a folder of tokens. The same command again resumes it."""

    data: PrepareConfig = field(default_factory=PrepareConfig)
    out: str = ""
    """The folder to make, local or s3:// gs://."""
    num_workers: int | None = None
    """Processes; None is one for each core. The result does not depend on it."""
    engine: Engine = "local"
    """local: this machine; ray: the Ray cluster of RAY_ADDRESS, with --out on a shared disk."""
    json: bool = False
    """Print the result as one JSON object, on the last line."""


def main(arguments: Sequence[str]) -> int:
    started = time.perf_counter()
    parsed = parse_arguments(PrepareArguments, arguments, command="./tessera prepare")
    require(parsed.out != "", "--out must name the folder to make, such as --out prepared/web")
    require_at_least("--num-workers", parsed.num_workers or 1, 1)
    console = Console(highlight=False, stderr=parsed.json)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if is_remote(parsed.out):
        require(
            not is_prepared(parsed.out),
            f"--out={parsed.out} has a prepared folder already; give another --out",
        )
        name = hashlib.sha256(parsed.out.encode()).hexdigest()[:16]
        folder = (RUNS / ".data" / f"outgoing-{name}").absolute()
    else:
        folder = Path(parsed.out).expanduser().absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / f".{folder.name}.lock").touch()
    except OSError as error:
        raise SettingsError(f"--out={parsed.out} cannot be made: {error}") from None
    with explain_full_disk(folder), locked(folder.parent, f".{folder.name}"):
        was_prepared = (folder / MANIFEST).is_file()
        try:
            with contextlib.closing(Progress(console)) as progress:
                store = _prepare(parsed, folder, say, progress)
        except KeyboardInterrupt:
            raise Stopped("stopped by Ctrl-C: give the same command again to resume") from None
        if is_remote(parsed.out):
            say(f"copying to {parsed.out}")
            push_folder(folder, parsed.out)
            shutil.rmtree(folder)
    seconds = time.perf_counter() - started
    say(store.describe())
    out = parsed.out if is_remote(parsed.out) else folder
    say(f"{'' if was_prepared else f'prepared {parsed.out} in {duration(seconds)}; '}next steps:")
    say(f"  {tessera('inspect', out)}")
    say(f"  {tessera('train', _preset_for(parsed.data), '--data.path', out)}")
    if parsed.json:
        splits = {
            name: {key: split[key] for key in ("tokens", "documents", "characters", "bytes")}
            for name, split in store.manifest["splits"].items()
        }
        print(json.dumps({"out": parsed.out, "sec": seconds, "digest": store.digest, **splits}))
    return 0


def _preset_for(config: PrepareConfig) -> str:
    """Returns the small preset whose objective needs the special tokens that were prepared."""
    presets = {"masked": "quickstart_bert", "span": "quickstart_t5"}
    return next((presets[name] for name in config.special_tokens if name in presets), "quickstart")


def _prepare(parsed: PrepareArguments, folder: Path, say: Log, progress: Progress) -> TokenStore:
    """Returns what is in the folder, made now, resumed, or found as it should be."""
    config = parsed.data
    if (folder / MANIFEST).is_file():
        remove_work(folder)
        store = open_store(folder)
        store.check_format()
        made_with, wanted = store.manifest["made_with"], json.loads(json.dumps(asdict(config)))
        for name, value in wanted.items():
            require(
                made_with.get(name) == value,
                f"--out={parsed.out} was prepared with data.{name}={made_with.get(name)}, not "
                f"{value}: give another --out, or remove it",
            )
        _refuse_other_files(parsed, store)
        say(f"{parsed.out} is prepared already; remove it to prepare it again")
        return store
    require(
        config.path is not None,
        "data.path=None must name what to prepare: --data.path FILE_OR_DIR",
    )
    text = replace(config, path=local_path(str(config.path), RUNS / ".data"))
    source, folder = Path(str(text.path)).expanduser().resolve(), folder.resolve()
    require(
        not (source / MANIFEST).is_file(),
        f"data.path={config.path} is prepared already; to train on it: "
        + tessera("train", _preset_for(config), "--data.path", source),
    )
    require(
        source not in (folder, *folder.parents),
        f"--out={parsed.out} must not lie in data.path={config.path}, for it would be read as text",
    )
    tokenizer = given_tokenizer(config)
    preparation = Preparation(
        text,
        folder,
        Workers(parsed.num_workers, parsed.engine),
        progress,
        made_with=config,
        corpus=open_corpus(text, tokenizer.vocab_size if tokenizer else None),
    )
    prepare([preparation], tokenizer, say)
    return open_store(folder)


def _refuse_other_files(parsed: PrepareArguments, store: TokenStore) -> None:
    """Raises SettingsError if the text is there and its files are others than were prepared."""
    if parsed.data.path is None or is_remote(parsed.data.path):
        return
    try:
        files = open_corpus(parsed.data).files
    except SettingsError:
        return  # the text is gone, and its tokens serve as they are
    there = {file.name: file.num_bytes for file in files}
    then = {file["name"]: file["size"] for file in store.files}
    changed = sorted(name for name in there | then if there.get(name) != then.get(name))
    require(
        not changed,
        f"--out={parsed.out} was prepared from other files than data.path={parsed.data.path} has "
        f"now ({', '.join(changed[:3])}): give another --out, or remove it",
    )
