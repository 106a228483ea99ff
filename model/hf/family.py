"""A family of Hugging Face models, and how the keys of config.json become settings, and back."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from configs.model import ModelConfig
from configs.position import RopeScaling
from configs.require import require
from model.hf.tensors import HFTensor

HFConfig = Mapping[str, Any]
"""The content of a config.json."""
Names = Set[str]
"""Names of the stored tensors; empty if only config.json is known."""


@dataclass(frozen=True)
class Row:
    """Keys of config.json and the fields of ModelConfig that they stand for, both ways."""

    read: Callable[[HFConfig, Names], Mapping[str, Any]]
    """Returns the fields; KeyError if a key is missing, SettingsError if it has no such value."""
    write: Callable[[Any], Mapping[str, Any]]
    """From ModelConfig, or a part of it, to the keys."""


Rows = Sequence[Row]
"""Of two rows with the same key or field, the later one counts."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The models of one Hugging Face model_type, of any size."""

    model_type: str
    hf_class: str
    """In architectures of config.json, unless a row writes it."""
    rows: Rows
    tensors: Callable[[ModelConfig], Iterator[HFTensor]]
    canonical_name: Callable[[str], str] = lambda name: name
    """From the name of a tensor in an older or headless checkpoint to that in `tensors`."""
    ignored_suffixes: tuple[str, ...] = ()
    """Ends of names of stored buffers, which are computed and not trained."""
    tied_tensors: Mapping[str, str] = field(default_factory=dict)
    """{name: the tensor it is tied to}; some checkpoints store both."""

    def read_config(self, hf_config: HFConfig, names: Names) -> dict[str, Any]:
        """Returns fields of ModelConfig."""
        fields = read_rows(self.rows, hf_config, names)
        if fields.get("num_kv_heads") is None:
            fields["num_kv_heads"] = fields["num_heads"]
        if fields.get("head_dim") is None:
            fields["head_dim"] = fields["embed_dim"] // fields["num_heads"]
        return fields

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """Returns the content of config.json; drops what has no key there."""
        first = {"architectures": [self.hf_class], "model_type": self.model_type}
        return {**first, **write_rows(self.rows, config)}


def read_rows(rows: Rows, hf_config: HFConfig, names: Names) -> dict[str, Any]:
    """Returns the fields of ModelConfig that rows read."""
    return {name: value for row in rows for name, value in row.read(hf_config, names).items()}


def write_rows(rows: Rows, config: Any) -> dict[str, Any]:
    """Returns the keys of config.json that rows write."""
    return {name: value for row in rows for name, value in row.write(config).items()}


_REQUIRED: Any = object()


def key(
    name: str,
    field: str,
    default: Any = _REQUIRED,
    *,
    choices: Mapping[str, str] | None = None,
    convert: Callable[[Any], Any] | None = None,
) -> Row:
    """Returns one key that is one field.

    Args:
        default: if the key is absent or null: a value of the key, or a function like Row.read that
            returns it.
        choices: {value in config.json: value of the field}; an unknown value of the field is
            written as the first one, so that it reads back as another.
        convert: applied to the value that is read.
    """

    def read(hf_config: HFConfig, names: Names) -> dict[str, Any]:
        value: Any = hf_config.get(name)
        if value is None and default is _REQUIRED:
            raise KeyError(name)
        if value is None:
            value = default(hf_config, names) if callable(default) else default
        if choices is not None:
            supported = ", ".join(choices)
            require(value in choices, f"config.json: {name}={value} must be one of {supported}")
            value = choices[value]
        return {field: value if convert is None else convert(value)}

    def write(config: ModelConfig) -> dict[str, Any]:
        value = getattr(config, field)
        if choices is not None:
            hf_values = [hf for hf, tessera in choices.items() if tessera == value]
            value = (hf_values or [*choices])[0]
        return {name: value}

    return Row(read, write)


def fixed_fields(**fields: Any) -> Row:
    """Returns fields that are the same in all models of a family, and have no key."""
    return Row(lambda hf_config, names: fields, lambda config: {})


def fixed_keys(**supported: Any) -> Row:
    """Returns keys that are written, and refused if config.json has another value."""
    return Row(checked_keys(**supported).read, lambda config: supported)


def checked_keys(**supported: Any) -> Row:
    """Returns keys that are refused if config.json has another value, and not written."""

    def read(hf_config: HFConfig, names: Names) -> dict[str, Any]:
        for name, value in supported.items():
            given = hf_config.get(name, value)
            require(
                given == value or (not given and not value),
                f"config.json: {name}={given} must be {value}: no other value is supported",
            )
        return {}

    return Row(read, lambda config: {})


GATED_MLPS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""{activation in config.json: model.mlp} of gated MLPs."""
UNGATED_MLPS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
UNGATED_MLPS |= {"relu": "relu", "silu": "silu", "swish": "silu"}
"""{activation in config.json: model.mlp} of MLPs without a gate."""

LAYERS_AND_HEADS = (
    key("num_hidden_layers", "num_layers"),
    key("hidden_size", "embed_dim"),
    key("num_attention_heads", "num_heads"),
)
MLP_AND_VOCAB = (key("intermediate_size", "mlp_dim"), key("vocab_size", "vocab_size"))
TIED_EMBEDDINGS = key(
    "tie_word_embeddings", "tied_embeddings", lambda _, names: "lm_head.weight" not in names
)


def mscale(factor: float, weight: float) -> float:
    """Returns YaRN's factor on queries and keys, sqrt(1/t). Source: arXiv:2309.00071, eq. 22."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(rope: HFConfig, names: Names) -> float:
    factor = float(rope.get("factor", 1.0))
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(factor, rope["mscale"]) / mscale(factor, rope["mscale_all_dim"])
    return mscale(factor, 1.0)


_FACTOR = key("factor", "factor", 1.0, convert=float)
_ORIGINAL_LEN = key(
    "original_max_position_embeddings",
    "original_len",
    lambda rope, _: rope.get("max_position_embeddings"),
)
_ROPE_SCALING = {
    "linear": (_FACTOR,),
    "llama3": (
        _FACTOR,
        _ORIGINAL_LEN,
        key("low_freq_factor", "low_frequency", convert=float),
        key("high_freq_factor", "high_frequency", convert=float),
    ),
    "yarn": (
        _FACTOR,
        _ORIGINAL_LEN,
        checked_keys(truncate=True),
        key("beta_fast", "beta_fast", 32, convert=float),
        key("beta_slow", "beta_slow", 1, convert=float),
        key("attention_factor", "attention_factor", _attention_factor, convert=float),
    ),
}
"""The rows of rope_scaling, by its type."""


def read_rope(hf_config: HFConfig, names: Names) -> dict[str, Any]:
    """Returns the RoPE fields of ModelConfig, from rope_parameters or from rope_theta and scaling.

    Raises:
        SettingsError: the type of scaling is not supported.
    """
    given = hf_config.get("rope_parameters") or {}
    if "full_attention" in given:  # one for each type of layer
        full = given["full_attention"]
        local = given.get("sliding_attention") or full
        fields = read_rope({**hf_config, "rope_parameters": full}, names)
        if local != full:
            checked_keys(rope_type="default").read(local, names)
            fields["rope_theta_local"] = float(local["rope_theta"])
        return fields
    shared = {name: hf_config.get(name) for name in ("rope_theta", "max_position_embeddings")}
    rope = {**shared, **(hf_config.get("rope_scaling") or {}), **given}
    kind, theta = rope.get("rope_type", rope.get("type", "default")), rope["rope_theta"]
    fields = {"rope_theta": 10_000.0 if theta is None else float(theta)}
    if kind == "default":
        return fields
    supported = ", ".join(_ROPE_SCALING)
    require(
        kind in _ROPE_SCALING, f"config.json: rope_type={kind} must be one of default, {supported}"
    )
    scaling = RopeScaling(kind=kind, **read_rows(_ROPE_SCALING[kind], rope, names))
    return {**fields, "rope_scaling": scaling}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns rope_theta and rope_scaling of config.json."""
    scaling, theta = config.rope_scaling, {"rope_theta": config.rope_theta}
    if scaling.kind == "none":
        return theta
    fields = write_rows(_ROPE_SCALING[scaling.kind], scaling)
    return {**theta, "rope_scaling": {"rope_type": scaling.kind, **fields}}


ROPE = Row(read_rope, write_rope)


def read_layer_types(hf_config: HFConfig, default: Callable[[int], bool]) -> dict[str, Any]:
    """Returns attention_window and attention_pattern of ModelConfig.

    Args:
        default: whether a layer is local, if config.json has no layer_types.
    """
    num = hf_config["num_hidden_layers"]
    kinds = hf_config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if default(i) else "full_attention" for i in range(num)]
    unknown = " ".join(sorted({*kinds} - {"sliding_attention", "full_attention"}))
    require(
        not unknown,
        f"config.json: layer_types={unknown} must be sliding_attention or full_attention",
    )
    window = hf_config.get("sliding_window")
    if window is None or "sliding_attention" not in kinds:
        return {}
    if "full_attention" not in kinds:
        return {"attention_window": window}
    period = next(p for p in range(1, num + 1) if kinds[p:] == kinds[: num - p])
    names = {"sliding_attention": "local", "full_attention": "global"}
    pattern = tuple(names[kind] for kind in kinds[:period])
    return {"attention_window": window, "attention_pattern": pattern}


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """Returns layer_types and sliding_window of config.json."""
    kinds = [
        "sliding_attention" if config.is_local(i) else "full_attention"
        for i in range(config.num_layers)
    ]
    return {"layer_types": kinds, "sliding_window": config.attention_window}
