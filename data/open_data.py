"""Opens all that a run reads: prepared folders as they are, text after it has been prepared."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.check import require
from configs.data import STDLIB, DataConfig, PrepareConfig, named
from configs.errors import SettingsError
from data.atomic_files import locked
from data.hf_hub import fetch_dataset, is_hub
from data.mixture import Data, Source
from data.object_store import fetch_files, fetch_folder, is_prepared, is_remote
from data.prepare.engine import Workers
from data.prepare.prepare import Preparation, Say, Watch, remove_work
from data.prepare.text.corpus import open_corpus, open_overlap
from data.token_store import (
    FORMAT_VERSION,
    TokenStore,
    is_prepared_folder,
    open_store,
    stored_tokenizer,
)
from data.tokenizers.tokenizer import Tokenizer, changes_text, open_tokenizer, tokenizer_digest
from data.tokenizers.train_tokenizer import (
    RESERVED,
    SAMPLE_CHARACTERS,
    learn_characters,
    learn_sentencepiece,
)

_LEARNED = ("sentencepiece", "characters")
_ONLY_LEARNED = ("vocab_size", "sentencepiece_model")


def open_data(
    config: DataConfig,
    cache_dir: Path,
    say: Say,
    *,
    workers: Workers | None = None,
    watch: Watch = lambda stage, done, total: None,
    moved: Mapping[str, str] | None = None,
    part: int = 0,
    num_parts: int = 1,
) -> Data:
    """Returns the sources and validation sets that the settings name.

    Text is prepared into cache_dir/DIGEST, a name made of the text and of the settings that matter;
    runs share it and take turns to make it. One tokenizer serves all: that of a prepared folder, or
    one that is learned from all texts together.

    Args:
        moved: {name: prepared folder} of an earlier opening, used where they are still there; None
            for a new run, which takes no folder of an earlier format.
        part: of several parts of the prepared files, each checked by another process, this one's.

    Raises:
        SettingsError: a text cannot be used, or the tokenizers of two folders differ.
        IntegrityError: a prepared folder is not as its manifest says.
        Unavailable: a disk or an object store does not answer, which may pass.
    """
    paths = named(config.mixture, "data.mixture")
    if not paths:
        require(
            config.path is not None,
            "data.path=None must name a text: --data.path FILE_OR_DIR (.txt .jsonl .parquet, a "
            f"folder of them, ...), or {STDLIB} for the text that comes with Python",
        )
        paths = {_stem(str(config.path)): str(config.path)}
    held_out = named(config.validation, "data.validation")
    for name in paths:
        require(
            name not in held_out,
            f"data.validation={name}={held_out.get(name)} must have another name: {name} is that "
            f"of data.path={paths[name]}",
        )
    plain = PrepareConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PrepareConfig)}
    )
    plain = with_local_texts(plain, cache_dir)
    fractions = dict.fromkeys(paths, config.validation_fraction) | dict.fromkeys(held_out, 1.0)
    open_part = functools.partial(open_store, verify=config.verify, part=part, num_parts=num_parts)
    stores: dict[str, TokenStore] = {}
    texts: dict[str, PrepareConfig] = {}
    for name, path in {**paths, **held_out}.items():
        known = Path((moved or {}).get(name, path)).expanduser()
        if not is_prepared_folder(known):
            path = local_path(path, cache_dir)
            known = Path(path).expanduser()
        if is_prepared_folder(known):
            stores[name] = open_part(known)
            if moved is None:
                stores[name].check_format()
            if ignored := _ignored(plain, stores[name]):
                say(f"note: {known} is prepared already, so these do not count: {ignored}")
        else:
            texts[name] = dataclasses.replace(plain, path=path, validation_fraction=fractions[name])
    if texts:
        tokenizer = _common_tokenizer(stores) or given_tokenizer(plain)
        folders = _prepare(texts, tokenizer, cache_dir, say, workers or Workers(), watch)
        stores |= {name: open_part(folder) for name, folder in folders.items()}
        for name in texts:
            say(f"data: {stores[name].describe()}")
    _common_tokenizer(stores)
    for name in paths:
        require(
            stores[name].train.num_tokens > 1,
            f"data.mixture or data.path has {name}={paths[name]}, which has no training split; it "
            "can be named in data.validation",
        )
    return Data(
        sources=tuple(Source(name, stores[name]) for name in paths),
        held_out=tuple(
            (
                name,
                stores[name].validation
                if stores[name].validation.num_tokens
                else stores[name].train,
            )
            for name in held_out
        ),
    )


def _ignored(config: PrepareConfig, store: TokenStore) -> str:
    """Returns the settings of preparing that are given but were other ones when it was made."""
    made_with = store.manifest["made_with"]
    given = json.loads(json.dumps(dataclasses.asdict(config)))
    usual = json.loads(json.dumps(dataclasses.asdict(PrepareConfig())))
    return ", ".join(
        f"data.{name}={value} (made with {made_with.get(name)})"
        for name, value in given.items()
        if name != "path" and value not in (usual[name], made_with.get(name))
    )


def _stem(path: str) -> str:
    return Path(path.rstrip("/")).name.split(".")[0] or "data"


def local_path(path: str, cache_dir: Path) -> str:
    """Returns where a path is read: as it is, or a copy if it is remote or on the hub."""
    if is_hub(path):
        return str(fetch_dataset(path, cache_dir))
    if is_remote(path):
        return str((fetch_folder if is_prepared(path) else fetch_files)(path, cache_dir))
    return path


def with_local_texts(config: PrepareConfig, cache_dir: Path) -> PrepareConfig:
    """Returns the settings with copies in place of remote evaluation texts."""
    local = tuple(local_path(path, cache_dir) for path in config.decontaminate_from)
    return dataclasses.replace(config, decontaminate_from=local)


def given_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """Returns the tokenizer that data.tokenizer names, None where it is to be learned.

    Raises:
        SettingsError: it cannot be read.
        IntegrityError: that of a prepared folder is not as its manifest says.
    """
    folder = Path(config.tokenizer).expanduser()
    if "/" in config.tokenizer and folder.is_dir():
        return stored_tokenizer(folder)
    return open_tokenizer(config)


def _common_tokenizer(stores: Mapping[str, TokenStore]) -> Tokenizer | None:
    """Returns the tokenizer of prepared folders; raises SettingsError if they differ."""
    digests = {name: tokenizer_digest(store.tokenizer) for name, store in stores.items()}
    for name, digest in digests.items():
        first = next(iter(digests))
        require(
            digest == digests[first],
            f"data.mixture and data.validation must have one tokenizer, but {first} was prepared "
            f"with {digests[first][:12]} ({stores[first].tokenizer.kind}) and {name} with "
            f"{digest[:12]} ({stores[name].tokenizer.kind}); prepare {name} again with "
            f"--data.tokenizer {stores[first].folder}, or give its text in place of its folder",
        )
    return next(iter(stores.values())).tokenizer if stores else None


def _prepare(
    texts: Mapping[str, PrepareConfig],
    tokenizer: Tokenizer | None,
    cache_dir: Path,
    say: Say,
    workers: Workers,
    watch: Watch,
) -> dict[str, Path]:
    """Returns the folder of each text, prepared now or found where an earlier run made it."""
    vocab_size = tokenizer.vocab_size if tokenizer else None
    corpora = {name: open_corpus(config, vocab_size) for name, config in texts.items()}
    digests = {name: corpus.digest() for name, corpus in corpora.items()}
    taught = sorted(
        (
            (digests[name], config.validation_fraction)
            for name, config in texts.items()
            if config.validation_fraction != 1 or config.tokenizer == "characters"
        ),
        key=str,
    )
    learned_from = None if tokenizer else taught
    folders = {
        name: cache_dir.absolute() / _identity(config, digests[name], tokenizer, learned_from)
        for name, config in texts.items()
    }
    # Two names may be of one text. In the order of the digests, so that what a tokenizer is learned
    # from depends on the texts alone.
    distinct = {folders[name]: name for name in sorted(texts, key=digests.__getitem__)}
    with contextlib.ExitStack() as locks:
        for name in sorted(folder.name for folder in distinct):
            locks.enter_context(locked(cache_dir, name))
        done = [folder for folder in distinct if is_prepared_folder(folder)]
        for folder in done:
            remove_work(folder)
        if done and tokenizer is None:
            tokenizer = stored_tokenizer(done[0])
        preparations = [
            Preparation(texts[name], folder, workers, watch, corpus=corpora[name])
            for folder, name in distinct.items()
            if folder not in done
        ]
        prepare(preparations, tokenizer, say)
    return folders


def prepare(preparations: list[Preparation], tokenizer: Tokenizer | None, say: Say) -> None:
    """Prepares corpora with one tokenizer, which is learned from all of them where none is given.

    Raises:
        SettingsError: a text cannot be used, or the tokenizer does not suit it.
    """
    notes = ""
    for preparation in preparations:
        others = ", ".join(f"{n} {name}" for name, n in preparation.corpus.not_read.items())
        note = f"; files there that are not read: {others}" if others else ""
        say(f"preparing {preparation.description}{note}")
        for line in preparation.corpus.notes:
            say(f"note: {line}")
        if tokenizer is None and preparation.corpus.has_tokens:
            config = preparation.config
            raise SettingsError(
                f"data.tokenizer={config.tokenizer} is learned from text, but data.path="
                f"{config.path} holds tokens: give the tokenizer that made them, a .model or a "
                "tokenizer.json"
            )
        preparation.scan(tokenizer)
        for line in preparation.marks:
            say(f"note: {line}")
        say(preparation.settled.describe())
    if preparations and tokenizer is None:
        num = sum(preparation.num_line_characters for preparation in preparations)
        preparations[0].watch("train the tokenizer", 0, num)
        tokenizer, notes = _learn(preparations)
        preparations[0].watch("train the tokenizer", num, num)
        say(f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} tokens{notes and f'; {notes}'}")
    if preparations and tokenizer is not None and (changed := changes_text(tokenizer)):
        say(
            "warning: this tokenizer does not give every text back as it was; it changes "
            f"{', '.join(changed)}"
        )
    for preparation in preparations:
        assert tokenizer is not None
        preparation.write(tokenizer, notes)


def _learn(preparations: list[Preparation]) -> tuple[Tokenizer, str]:
    """Returns a tokenizer learned from all texts, and in words what it has not learned from."""
    config = preparations[0].config
    if config.tokenizer == "characters":
        return learn_characters(set().union(*(p.alphabet for p in preparations)), config), ""
    num_characters = sum(preparation.num_line_characters for preparation in preparations)
    stride = -(-num_characters // SAMPLE_CHARACTERS) or 1
    lines = [line for preparation in preparations for line in preparation.sample(stride)]
    num_split = sum(RESERVED in line for line in lines)
    notes = [f"learned from one line of {stride}, in parts of 1000 characters"] * (stride > 1)
    notes += [f"{num_split:,} lines that it learns from are split at U+2585"] * bool(num_split)
    return learn_sentencepiece(lines, config), ", ".join(notes)


def _identity(
    config: PrepareConfig,
    text: str,
    tokenizer: Tokenizer | None,
    learned_from: list[tuple[str, float | None]] | None,
) -> str:
    """Returns the name of the folder that holds what a text and its settings determine."""
    settings: dict[str, Any] = {**dataclasses.asdict(config), "path": None}
    if config.tokenizer not in _LEARNED or tokenizer is not None:
        settings |= dict.fromkeys(_ONLY_LEARNED)
        settings["tokenizer"] = tokenizer and tokenizer_digest(tokenizer)
    settings["decontaminate_from"] = [
        open_overlap(config, path)[1].digest() for path in config.decontaminate_from
    ]
    content = [FORMAT_VERSION, text, settings, learned_from]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
