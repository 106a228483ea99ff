"""Settings as flat names: written to a file, read back, and compared between two starts."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from configs.run import RunConfig

Change = Literal["safe", "trajectory", "incompatible"]

_SAFE = (
    "checkpoint.",
    "eval.",
    "sample.",
    "guard.",
    "mesh.",
    "model.remat",
    "model.remat_saved",
    "model.remat_offloaded",
    "model.context_attention",
    "model.attention_backend",
    "model.num_unrolled_layers",
    "train.num_microbatches",
    "train.log_every_steps",
    "data.path",  # the manifest decides whether the text is the same, and how it was made
    "data.mixture",
    "data.validation",
    "data.text_field",
    "data.text_template",
    "data.token_dtype",
    "data.document_separator",
    "data.split_files",
    "data.invalid_utf8",
    "data.bad_records",
    "data.clean",
    "data.min_characters",
    "data.max_characters",
    "data.languages",
    "data.duplicate_similarity",
    "data.decontaminate_from",
    "data.decontaminate_ngram_len",
    "data.verify",
    "data.num_read_threads",
    "data.num_prefetch_batches",
)
_INCOMPATIBLE = (
    "model.architecture",
    "model.num_layers",
    "model.num_encoder_layers",
    "model.embed_dim",
    "model.mlp_dim",
    "model.vocab_size",
    "model.attention",
    "model.num_heads",
    "model.num_kv_heads",
    "model.head_dim",
    "model.query_latent_dim",
    "model.kv_latent_dim",
    "model.rope_head_dim",
    "model.value_head_dim",
    "model.qkv_bias",
    "model.qk_norm",
    "model.qk_norm_over",
    "model.attention_sinks",
    "model.position",
    "model.num_positions",
    "model.num_relative_buckets",
    "model.norm",
    "model.norm_placement",
    "model.norm_zero_centered",
    "model.first_norm",
    "model.embed_norm",
    "model.num_token_types",
    "model.mlp",
    "model.num_experts",
    "model.expert_dim",
    "model.num_shared_experts",
    "model.num_dense_layers",
    "model.router_bias",
    "model.tied_embeddings",
    "model.head_bias",
    "model.head_transform",
    "model.pooler",
    "model.next_sentence",
    "model.mtp_depth",
    "model.bias",
    "optim.optimizer",
    "data.tokenizer",
    "data.split_pattern",
    "data.vocab_size",
    "data.sentencepiece_model",
    "data.separator_token",
    "data.special_tokens",
    "data.validation_fraction",
    "data.validation_seed",
)
_OF_BATCHES = ("data.", "train.seed", "train.batch_size")

RENAMED = {
    "model.norm_place": "model.norm_placement",
    "model.num_future_tokens": "model.mtp_depth",
    "model.future_weight": "model.mtp_weight",
    "model.tied_head": "model.tied_embeddings",
    "guard.max_skipped_steps": "guard.max_nonfinite_steps",
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

REPLACED = {
    "guard.start_limit_sec": "guard.hang_limit_sec",
    "guard.compile_limit_sec": "guard.hang_limit_sec",
    "guard.step_limit_sec": "guard.hang_limit_sec",
    "guard.save_limit_sec": "guard.hang_limit_sec",
    "guard.eval_limit_sec": "guard.hang_limit_sec",
    "guard.min_limit_sec": "guard.hang_limit_sec",
    "start_limit_sec": "rendezvous-timeout-sec",
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
    return named


def classify(name: str) -> Change:
    """Says what changing a setting does to a run that has begun.

    safe: neither the batches nor the arithmetic change (beyond the order of additions).
    incompatible: the state or the tokens would not fit. trajectory: everything else.
    """
    if name in _INCOMPATIBLE:
        return "incompatible"
    if any(name == safe or (safe.endswith(".") and name.startswith(safe)) for safe in _SAFE):
        return "safe"
    return "trajectory"


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
    """Yields ("group.field", value) of nested dicts; a name may itself be flat already."""
    for name, value in tree.items():
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
    return {
        f"{group.name}.{field.name}": _json(field.default)
        for group in dataclasses.fields(RunConfig)
        for field in dataclasses.fields(group.type)  # type: ignore[arg-type]
        if field.default is not dataclasses.MISSING
    }


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def grouped(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns {group: {field: value}} of settings by flat name; ValueError for another name."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        group, field = name.split(".")
        groups.setdefault(group, {})[field] = value
    return groups


def unflatten(flat: dict[str, Any]) -> RunConfig:
    """Returns the RunConfig that was flattened; raises SettingsError on values that cannot be."""
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in flat.items()}
    classes = {field.name: field.type for field in dataclasses.fields(RunConfig)}
    return RunConfig(**{group: classes[group](**own) for group, own in grouped(values).items()})  # type: ignore[operator]
