"""Settings as flat names: written to a file, read back, and compared between two starts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_type_hints

from configs.model import head_of
from configs.position import MAX_RELATIVE_DISTANCE, NUM_RELATIVE_BUCKETS
from configs.require import Change, metadata_of, require
from configs.run import RunConfig

GROUPS: dict[str, Any] = get_type_hints(RunConfig)
"""{group of settings: its class}."""
_OF_BATCHES = ("data.", "train.seed", "train.batch_size")

RENAMED = {
    "model.norm_place": "model.norm_placement",
    "model.num_future_tokens": "model.mtp_depth",
    "model.future_weight": "model.mtp_weight",
    "model.tied_head": "model.tied_embeddings",
    "guard.max_skipped_steps": "guard.max_nonfinite_steps",
    "model.rope_scaling": "model.rope_scaling.kind",
    "model.rope_scaling_factor": "model.rope_scaling.factor",
    "model.rope_original_len": "model.rope_scaling.original_len",
    "model.rope_low_frequency": "model.rope_scaling.low_frequency",
    "model.rope_high_frequency": "model.rope_scaling.high_frequency",
    "model.rope_beta_fast": "model.rope_scaling.beta_fast",
    "model.rope_beta_slow": "model.rope_scaling.beta_slow",
    "model.rope_attention_factor": "model.rope_scaling.attention_factor",
}
"""{name of a setting in an earlier version: its name now}; the value is kept. An old name is read
from files that exist, and refused on the command line with the new one."""

_RENAMED_VALUES: dict[str, dict[str, str]] = {
    "model.attention": {"heads": "mha", "latent": "mla"},
    "model.norm_placement": {
        "input": "pre",
        "output": "reordered",
        "both": "sandwich",
        "residual": "post",
    },
}
"""{setting: {value in an earlier version: value now}}."""

MERGED = dict.fromkeys(
    ("model.head_bias", "model.head_transform", "model.pooler", "model.next_sentence"), "model.head"
)
"""{setting of an earlier version: the one that says the same together with others}."""

CONSTANTS = {
    "model.num_relative_buckets": NUM_RELATIVE_BUCKETS,
    "model.max_relative_distance": MAX_RELATIVE_DISTANCE,
}
"""{setting of an earlier version: the only value it may have had}."""

REPLACED = {
    "guard.hang_factor": "guard.hang_limit_sec",
    "guard.start_limit_sec": "guard.hang_limit_sec",
    "guard.compile_limit_sec": "guard.hang_limit_sec",
    "guard.step_limit_sec": "guard.hang_limit_sec",
    "guard.save_limit_sec": "guard.hang_limit_sec",
    "guard.eval_limit_sec": "guard.hang_limit_sec",
    "guard.min_limit_sec": "guard.hang_limit_sec",
    "start_limit_sec": "rendezvous-timeout-sec",
    "max_restarts": "supervise",
    "restart_wait_sec": "supervise",
    "frozen_limit_sec": "supervise",
}
"""{setting of an earlier version: what took its place with a value of its own}. In the folder of a
run its value is ignored and logged."""


_SAME_DEFAULTS = {"data.validation_fraction": ((0.1, None), (None, 0.1))}
"""{setting: its default in an earlier version and now}; the digest of the data tells them apart."""


def up_to_date(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by flat name as this version names them, without those that are replaced."""
    named = {RENAMED.get(name, name): flat[name] for name in flat if name not in REPLACED}
    for name, values in _RENAMED_VALUES.items():
        if isinstance(value := named.get(name), str):
            named[name] = values.get(value, value)
    for name, value in CONSTANTS.items():
        given = named.pop(name, value)
        require(given == value, f"{name}={given} must be {value}: no other value is supported")
    if parts := {name: named.pop(name) for name in MERGED if name in named}:
        require("model.head" not in named, f"model.head is given twice: {', '.join(parts)}")
        named["model.head"] = head_of(**{name.split(".")[1]: own for name, own in parts.items()})
    return named


def classify(name: str) -> Change:
    """Says what changing a setting does to a run that has begun.

    That is what its type says (`Safe`, `Incompatible`), and "trajectory" for all others.
    """
    return _changes().get(name, "trajectory")


@functools.cache
def _changes() -> dict[str, Change]:
    """Returns {"group.field": what changing it does} of the settings whose type says so."""
    changes: dict[str, Change] = {}
    for group, (kind, of_group) in metadata_of(RunConfig).items():
        for name, (_, of_field) in metadata_of(kind).items():
            for each in (*of_field, *of_group):
                if each in get_args(Change):
                    changes[f"{group}.{name}"] = each
    return changes


def decides_batches(name: str) -> bool:
    """Says whether a setting that may be changed on the way decides what a batch is."""
    return name.startswith(_OF_BATCHES) and classify(name) == "trajectory"


def classify_change(name: str, old: RunConfig, new: RunConfig, step: int) -> Change:
    """Says what changing a setting does to a run that has taken so many steps.

    More or fewer steps are safe where the learning rates so far do not depend on them.
    """
    if name == "train.num_steps" and _keeps_rates(old, new, step):
        return "safe"
    return classify(name)


def _keeps_rates(old: RunConfig, new: RunConfig, step: int) -> bool:
    schedule = old.optim.schedule
    if schedule == "wsd":  # the peak lasts up to the decay, which the number of steps places
        starts = [c.train.num_steps - (c.optim.num_decay_steps or 0) for c in (old, new)]
        return step <= min(starts)
    return schedule in ("constant", "inverse_sqrt")


def flatten(config: RunConfig) -> dict[str, Any]:
    """Returns {"group.field": value} for every setting, values as JSON has them."""
    return {name: _json(value) for name, value in flat_items(dataclasses.asdict(config))}


def flat_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("group.field", value) of nested settings; a name may itself be flat already."""
    for name, value in tree.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {"group.field": (old, new)} for each setting that differs, in the order of new.

    A setting that came later than `old` is there at its default; a renamed or replaced one makes
    no difference, nor does a default that changed, where something else tells what it did.
    """
    old = {**_defaults(), **up_to_date(old)}
    names = [*new, *(name for name in old if name not in new)]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and pair not in _SAME_DEFAULTS.get(name, ())
    }


@functools.cache
def _defaults() -> dict[str, Any]:
    """Returns {"group.field": value} of every setting that has a default."""
    defaults = {
        group: {
            field.name: field.default
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }
        for group, kind in GROUPS.items()
    }
    return {name: _json(value) for name, value in flat_items(defaults)}


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def built(flat: Mapping[str, Any], make: Callable[[Any, dict[str, Any]], Any]) -> RunConfig:
    """Returns the RunConfig of settings by flat name.

    Args:
        make: makes a dataclass of its fields.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, field = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[field] = value

    def of(kind: Any, fields: dict[str, Any]) -> Any:
        kinds = get_type_hints(kind)
        for name, value in fields.items():
            if isinstance(value, dict):
                fields[name] = of(kinds[name], value)
        return make(kind, fields)

    return of(RunConfig, tree)


def unflatten(flat: dict[str, Any]) -> RunConfig:
    """Returns the RunConfig that was flattened; raises SettingsError on values that cannot be."""
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in flat.items()}
    return built(values, lambda kind, fields: kind(**fields))
