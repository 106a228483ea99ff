"""Opens the data of a run: prepared folders as they are, text after preparing it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.data import DataConfig, PrepareConfig, named
from configs.require import require
from data.atomic_files import locked
from data.hf_hub import fetch_dataset, is_hub
from data.mixture import Data, Source
from data.object_store import is_remote
from data.prepare.corpus_preparation import Log, Preparation, prepare
from data.prepare.engine import Workers
from data.prepare.text.corpus import open_corpus, open_overlap, require_path
from data.prepare.work_folder import OnProgress, remove_work
from data.remote_folders import fetch_files, fetch_folder, is_prepared
from data.token_store import (
    FORMAT_VERSION,
    TokenStore,
    TokenStream,
    is_prepared_folder,
    open_store,
    stored_tokenizer,
)
from data.tokenizers.tokenizer import Tokenizer, open_tokenizer, tokenizer_digest

_TRAINED = ("sentencepiece", "characters")
_ONLY_TRAINED = ("vocab_size", "sentencepiece_model")


def open_data(
    config: DataConfig,
    cache_dir: Path,
    log: Log,
    *,
    workers: Workers | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
    known_folders: Mapping[str, str] | None = None,
    process: int = 0,
    num_processes: int = 1,
) -> Data:
    """Returns the sources and validation sets that the settings name.

    Text is prepared into cache_dir/DIGEST, the digest of the text and of the settings that matter;
    runs share it and take turns to prepare it. All have one tokenizer: that of a prepared folder,
    or one trained on all texts together.

    Args:
        known_folders: {name: prepared folder} of an earlier opening, used if they still exist; None
            for a new run, which refuses folders of an earlier format.
        process: index of this process; each of num_processes checks its share of the files.

    Raises:
        SettingsError: a text cannot be used, or the tokenizers of two folders differ.
        IntegrityError: a prepared folder does not match its manifest.
        Unavailable: a disk or an object store does not respond; a retry may help.
    """
    paths = named(config.mixture, "data.mixture")
    if not paths:
        require_path(config.path)
        paths = {_stem(str(config.path)): str(config.path)}
    extra_validation = named(config.validation, "data.validation")
    for name in paths:
        require(
            name not in extra_validation,
            f"data.validation={name}={extra_validation.get(name)} must have another name: "
            f"the training source {paths[name]} has the name {name}",
        )
    plain = PrepareConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PrepareConfig)}
    )
    local = tuple(local_path(path, cache_dir) for path in plain.decontaminate_from)
    plain = dataclasses.replace(plain, decontaminate_from=local)
    fractions = dict.fromkeys(paths, config.validation_fraction) | dict.fromkeys(
        extra_validation, 1.0
    )
    open_share = functools.partial(
        open_store, verify=config.verify, process=process, num_processes=num_processes
    )
    stores: dict[str, TokenStore] = {}
    texts: dict[str, PrepareConfig] = {}
    for name, path in {**paths, **extra_validation}.items():
        known = Path((known_folders or {}).get(name, path)).expanduser()
        if not is_prepared_folder(known):
            path = local_path(path, cache_dir)
            known = Path(path).expanduser()
        if is_prepared_folder(known):
            stores[name] = open_share(known)
            if known_folders is None:
                stores[name].check_format()
            if ignored := _ignored(plain, stores[name]):
                log(f"note: {known} is prepared already, so these settings are ignored: {ignored}")
        else:
            texts[name] = dataclasses.replace(plain, path=path, validation_fraction=fractions[name])
    if texts:
        tokenizer = _common_tokenizer(stores) or given_tokenizer(plain)
        folders = _prepare(texts, tokenizer, cache_dir, log, workers or Workers(), on_progress)
        stores |= {name: open_share(folder) for name, folder in folders.items()}
        for name in texts:
            log(f"data: {stores[name].describe()}")
    _common_tokenizer(stores)
    for name in paths:
        require(
            stores[name].train.num_tokens > 1,
            f"data.mixture or data.path has {name}={paths[name]}, which has no training split; "
            "name it in data.validation instead",
        )
    return Data(
        sources=tuple(Source(name, stores[name]) for name in paths),
        extra_validation=tuple((name, _for_validation(stores[name])) for name in extra_validation),
    )


def _for_validation(store: TokenStore) -> TokenStream:
    return store.validation if store.validation.num_tokens else store.train


def _ignored(config: PrepareConfig, store: TokenStore) -> str:
    made_with = store.manifest["made_with"]
    given, defaults = (
        json.loads(json.dumps(dataclasses.asdict(each))) for each in (config, PrepareConfig())
    )
    return ", ".join(
        f"data.{name}={value} (made with {made_with.get(name)})"
        for name, value in given.items()
        if name != "path" and value not in (defaults[name], made_with.get(name))
    )


def _stem(path: str) -> str:
    return Path(path.rstrip("/")).name.split(".")[0] or "data"


def local_path(path: str, cache_dir: Path) -> str:
    if is_hub(path):
        return str(fetch_dataset(path, cache_dir))
    if is_remote(path):
        return str((fetch_folder if is_prepared(path) else fetch_files)(path, cache_dir))
    return path


def given_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """Returns the tokenizer that data.tokenizer names; None if it must be trained first."""
    folder = Path(config.tokenizer).expanduser()
    if "/" in config.tokenizer and folder.is_dir():
        return stored_tokenizer(folder)
    return open_tokenizer(config)


def _common_tokenizer(stores: Mapping[str, TokenStore]) -> Tokenizer | None:
    digests = {name: tokenizer_digest(store.tokenizer) for name, store in stores.items()}
    for name, digest in digests.items():
        first = next(iter(digests))
        require(
            digest == digests[first],
            f"data.mixture and data.validation must have one tokenizer, but {first} was prepared "
            f"with {digests[first][:12]} ({stores[first].tokenizer.kind}) and {name} with "
            f"{digest[:12]} ({stores[name].tokenizer.kind}); prepare {name} again with "
            f"--data.tokenizer {stores[first].folder}, or name its text instead of its folder",
        )
    return next(iter(stores.values())).tokenizer if stores else None


def _prepare(
    texts: Mapping[str, PrepareConfig],
    tokenizer: Tokenizer | None,
    cache_dir: Path,
    log: Log,
    workers: Workers,
    on_progress: OnProgress,
) -> dict[str, Path]:
    """Returns the folder of each text, prepared now or by an earlier run."""
    vocab_size = tokenizer.vocab_size if tokenizer else None
    corpora = {name: open_corpus(config, vocab_size) for name, config in texts.items()}
    digests = {name: corpus.digest() for name, corpus in corpora.items()}
    training_texts = sorted(
        (
            (digests[name], config.validation_fraction)
            for name, config in texts.items()
            if config.validation_fraction != 1 or config.tokenizer == "characters"
        ),
        key=str,
    )
    trained_on = None if tokenizer else training_texts
    folders = {
        name: cache_dir.absolute() / _folder_name(config, digests[name], tokenizer, trained_on)
        for name, config in texts.items()
    }
    # Two names may have one text. Ordered by digest, so that the training text of a tokenizer
    # depends on the texts alone.
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
            Preparation(texts[name], folder, workers, on_progress, corpus=corpora[name])
            for folder, name in distinct.items()
            if folder not in done
        ]
        prepare(preparations, tokenizer, log)
    return folders


def _folder_name(
    config: PrepareConfig,
    text: str,
    tokenizer: Tokenizer | None,
    trained_on: list[tuple[str, float | None]] | None,
) -> str:
    """Returns the digest of a text and of the settings that matter, a folder name."""
    settings: dict[str, Any] = {**dataclasses.asdict(config), "path": None}
    if config.tokenizer not in _TRAINED or tokenizer is not None:
        settings |= dict.fromkeys(_ONLY_TRAINED)
        settings["tokenizer"] = tokenizer and tokenizer_digest(tokenizer)
    settings["decontaminate_from"] = [
        open_overlap(config, path)[1].digest() for path in config.decontaminate_from
    ]
    content = [FORMAT_VERSION, text, settings, trained_on]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
