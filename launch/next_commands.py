"""What to do next with a run: every command that a command offers, made from the run itself."""

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.data import STDLIB
from configs.run import RunConfig
from configs.suggested_commands import of_environment, tessera
from train.record.run_folder import last_start

_PROMPTS = {"masked": "The [MASK]", "span": "The <extra_id_0>"}
"""A prompt for an encoder and an encoder-decoder, by the special tokens of the objective."""


def generate_hint(run: Path, config: RunConfig) -> str:
    """Returns the command that lets the model of a run write, with a prompt that suits it."""
    data, prompt = config.data, "The "
    if config.model.architecture in ("encoder", "encoder_decoder"):
        prompt = next((_PROMPTS[group] for group in data.special_groups), prompt)
    own = next(filter(str.strip, config.sample.prompts), None)
    if data.path == STDLIB and own is not None:
        prompt = own
    elif data.tokenizer == "characters":  # which may lack those of the prompt
        return tessera("generate", run)
    return tessera("generate", run, "--prompt", prompt)


def look_hints(run: Path, config: RunConfig, preset: str) -> list[str]:
    """Returns the commands that show more of a run, and the one that trains on a text of one's own.

    The last is for a run on the text that comes with Python.
    """
    own_text = [tessera("train", preset, "--data.path", "YOUR_TEXT.txt")]
    return [
        tessera("status", run),
        tessera("report", run),
        of_environment("tensorboard.main", "--logdir", run),
        *(own_text if config.data.path == STDLIB else []),
    ]


def resume_hint(events: Sequence[dict[str, Any]]) -> str | None:
    """Returns the command that a run was last started with; None before its first start."""
    start = last_start(events)
    command, folder = start.get("command"), start.get("cwd")
    if command is None or not isinstance(folder, str) or folder == os.getcwd():
        return command
    return f"cd {shlex.quote(folder)} && {command}"


def started_with(events: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the words after `train` of the command that a run was last started with."""
    try:
        return shlex.split(last_start(events)["command"])[2:]
    except (KeyError, ValueError, AttributeError):  # it was not kept, or the line is damaged
        return ["PRESET"]


def new_run_hint(words: Sequence[str], run: Path, *more: str) -> str:
    """Returns the command `train` of these words in a run folder that is free: RUN-2, RUN-3, ...

    Args:
        run: the folder that is taken.
        more: settings that are added.
    """
    kept: list[str] = []
    names = iter(words)
    for word in names:
        if not re.match("--run[-_]dir(=|$)", word):
            kept.append(word)
        elif "=" not in word:
            next(names, None)
    free = next(p for n in itertools.count(2) if not (p := Path(f"{run}-{n}")).exists())
    return tessera("train", *kept, "--run-dir", free, *more)
