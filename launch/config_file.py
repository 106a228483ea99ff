"""Settings in a file: the config.json of a run, or TOML, whole or in part."""

import contextlib
import dataclasses
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from configs.errors import SettingsError
from configs.flat_settings import (
    RENAMED,
    REPLACED,
    built,
    flat_items,
    flatten,
    up_to_date,
)
from configs.require import require
from configs.run import RunConfig
from launch.arguments import did_you_mean
from launch.help import settings_of, type_text
from train.record.run_folder import check_format


def apply_config_file(path: Path, config: RunConfig | None) -> RunConfig:
    """Returns the settings of a file, and for those that it does not have those of a preset.

    They are not checked against one another yet: flags may still change them.

    Args:
        config: of the preset; None where the file must have every setting without a default.

    Raises:
        SettingsError: it cannot be read, or a setting is unknown, of another type, given twice or
            missing.
    """
    found = _read(path)
    settings = {each.name: each for each in settings_of(RunConfig, config)}
    for name, value in found.items():
        if name not in settings:
            near = did_you_mean(name, list(settings))
            raise SettingsError(f"{path}: {name} is not a setting{near}")
        kind = settings[name].type
        try:
            found[name] = _converted(value, kind)
        except TypeError:
            message = f"{path}: {name}={value!r} must be {type_text(kind)}"
            raise SettingsError(message) from None
    values = {name: found.get(name, each.value) for name, each in settings.items()}
    missing = [name for name, value in values.items() if value is dataclasses.MISSING]
    require(
        not missing,
        f"{path} lacks {', '.join(missing)}: add them, or give a preset that has them: "
        f"./tessera train PRESET --config {path}",
    )
    return built(values, _unchecked)


def to_toml(config: RunConfig) -> str:
    """Returns all settings as a TOML file, which gives them back exactly."""
    groups: dict[str, list[str]] = {}
    for name, value in flatten(config).items():
        group, _, field = name.partition(".")
        groups.setdefault(group, [f"[{group}]"]).append(f"{field} = {_toml(value)}")
    return "\n\n".join("\n".join(lines) for lines in groups.values())


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | int):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", r"\u007f")


def _read(path: Path) -> dict[str, Any]:
    """Returns {"group.field": value} as the file has them, under the names of this version."""
    require(
        path.suffix in (".json", ".toml"),
        f"--config={path} must be a .toml, or a .json such as the config.json of a run",
    )
    try:
        text = path.read_text(encoding="utf-8")
        is_toml = path.suffix == ".toml"
        tree = tomllib.loads(text) if is_toml else json.loads(text, object_pairs_hook=_once)
        flat = _once((RENAMED.get(name, name), value) for name, value in flat_items(tree))
    except SettingsError as error:
        raise SettingsError(f"--config={path}: {error}") from None
    except OSError as error:
        raise SettingsError(f"--config={path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise SettingsError(f"--config={path} cannot be read as settings: {error}") from None
    check_format(flat, f"--config={path}")
    if replaced := [f"{name} (now {REPLACED[name]})" for name in flat if name in REPLACED]:
        message = f"{path}: settings of an earlier version are ignored: {', '.join(replaced)}"
        print(f"tessera: {message}", file=sys.stderr)
    return up_to_date(flat)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs as a dict; raises SettingsError where a name is given twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        require(name not in found, f"{name} is given twice; keep one of them")
        found[name] = value
    return found


def _converted(value: Any, kind: Any) -> Any:
    """Returns a value of a file as a setting has it; raises TypeError if it is of another type."""
    kinds = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        if value in (None, "None") and NoneType in kinds:
            return None
        for each in kinds:
            with contextlib.suppress(TypeError):
                return _converted(value, each)
    elif get_origin(kind) is Literal and value in kinds and not isinstance(value, bool):
        return value
    elif get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_converted(each, kinds[0]) for each in value)
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise TypeError


def _unchecked(kind: Any, values: Mapping[str, Any]) -> Any:
    """Returns a dataclass without its checks, which are made when the flags are put in."""
    made = object.__new__(kind)
    vars(made).update(values)
    return made
