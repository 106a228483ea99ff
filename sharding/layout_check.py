"""Checks that the settings fit the mesh, before anything is compiled."""

import math

from configs.attention_backends import ATTENTION_BACKENDS
from configs.require import require
from configs.run import RunConfig
from sharding.rules import mesh_axes


def check_fit(config: RunConfig, sizes: dict[str, int]) -> None:
    """Refuses settings whose batch or shapes a mesh of these sizes cannot shard evenly.

    The vocabulary is checked where it is known. Each SettingsError names the field, both values
    and what would do.
    """
    _check_batch(config, sizes)
    _check_rows(config, sizes)
    _check_layers(config, sizes)
    _check_shapes(config, sizes)
    _check_kind(config, sizes)
    require(
        config.model.attention_dropout == 0 or sizes["context"] == 1,
        f"model.attention_dropout={config.model.attention_dropout} must be 0 with mesh.context="
        f"{sizes['context']}; model.dropout is supported, or set mesh.context=1",
    )


def check_platform(config: RunConfig, platform: str) -> None:
    """Refuses settings that this platform (JAX's name: cpu, gpu, tpu) does not support."""
    backend = config.model.attention_backend
    here = [name for name, entry in ATTENTION_BACKENDS.items() if platform in entry.platforms]
    require(
        backend in ("auto", *here),
        f"model.attention_backend={backend} does not run on {platform}; "
        f"model.attention_backend may be {', '.join(('auto', *here))}",
    )
    remat = " ".join(config.model.remat_offloaded)
    for field, value, other in (
        ("mesh.offload_optimizer", config.mesh.offload_optimizer, "False"),
        ("model.remat_offloaded", remat, "nothing, and name them in model.remat_saved"),
    ):
        require(
            not value or platform != "cpu",
            f"{field}={value} needs devices with memory of their own, but on {platform} it is "
            f"the host's; set {field} to {other}",
        )


def num_stage_microbatches(config: RunConfig, num_stages: int) -> int:
    """Returns the microbatches in the pipeline at once, 1 without pipeline parallelism."""
    return (config.mesh.num_stage_microbatches or num_stages) if num_stages > 1 else 1


def _check_batch(config: RunConfig, sizes: dict[str, int]) -> None:
    train, num_stages = config.train, sizes["stage"]
    parts = num_stage_microbatches(config, num_stages)
    require(
        num_stages == 1 or parts % num_stages == 0,
        f"mesh.num_stage_microbatches={parts} must be a multiple of mesh.stage={num_stages}",
    )
    factors = {f"mesh.{axis}": sizes[axis] for axis in mesh_axes("act_batch")}
    factors["mesh.num_stage_microbatches"] = parts
    for name, size, cuts in (
        (
            "train.batch_size",
            train.batch_size,
            {**factors, "train.num_microbatches": train.num_microbatches},
        ),
        ("eval.batch_size", config.eval.batch_size or train.batch_size, factors),
    ):
        _require_multiple(name, size, math.prod(cuts.values()), _product(cuts))


def _check_rows(config: RunConfig, sizes: dict[str, int]) -> None:
    context, tensor = sizes["context"], sizes["tensor"]
    cuts = math.lcm(context * tensor, 2 * context if context > 1 else 1)
    named = _product({"mesh.context": context, "mesh.tensor": tensor})
    halves = ", in two halves each" if context > 1 else ""
    for name in ("sequence_len", "target_len"):
        length = getattr(config.data, name)
        if length is not None:
            _require_multiple(f"data.{name}", length, cuts, named + halves)


def _check_kind(config: RunConfig, sizes: dict[str, int]) -> None:
    model = config.model
    kind = f"model.architecture={model.architecture}"
    if model.architecture == "encoder_decoder" or model.is_recurrent:
        why = (
            "the decoder attends to the whole encoder output"
            if not model.is_recurrent
            else "a recurrent state passes through every position"
        )
        require(
            sizes["context"] == 1,
            f"mesh.context={sizes['context']} must be 1 with {kind}, because {why}: use "
            "mesh.data or mesh.fsdp",
        )
    require(
        sizes["stage"] == 1 or model.architecture != "encoder_decoder",
        f"mesh.stage={sizes['stage']} must be 1 with {kind}, because each layer of the decoder "
        "attends to the encoder output: use mesh.fsdp",
    )
    gathers = sizes["context"] == 1 or model.context_attention == "all_gather"
    for name, value, has_ring in (
        ("attention", model.attention, model.attention == "mha"),
        ("position", model.position, model.position != "relative"),
    ):
        require(
            gathers or has_ring,
            f"model.context_attention={model.context_attention} must be all_gather with "
            f"model.{name}={value} and mesh.context={sizes['context']}: ring attention does "
            "not support it",
        )
    under_ring = [name for name, entry in ATTENTION_BACKENDS.items() if entry.ring]
    require(
        gathers or model.attention_backend in ("auto", *under_ring),
        f"model.attention_backend={model.attention_backend} must be auto or "
        f"{' or '.join(under_ring)} with model.context_attention={model.context_attention} and "
        f"mesh.context={sizes['context']}; or give model.context_attention all_gather",
    )


def _check_layers(config: RunConfig, sizes: dict[str, int]) -> None:
    model, stage, groups = config.model, sizes["stage"], config.mesh.num_stage_groups
    layers, period = model.num_stacked_layers, model.period
    require(
        groups == 1 or stage > 1,
        f"mesh.num_stage_groups={groups} must be 1 with mesh.stage={stage}",
    )
    factors = {"mesh.stage": stage, "mesh.num_stage_groups": groups}
    without = f" without the {n} leading layers" if (n := model.num_leading_layers) else ""
    field = f"model.num_layers={model.num_layers}{without}"
    _require_divisible(field, layers, factors, at_most=layers)
    require(
        stage == 1 or layers // (stage * groups) % period == 0,
        f"model.attention_pattern={' '.join(model.attention_pattern)} must repeat within the "
        f"{layers // (stage * groups)} layers per group of {_product(factors)}; "
        f"{'their product' if groups > 1 else 'mesh.stage'} may be "
        f"{_divisors(layers // period, at_most=layers) if layers % period == 0 else 1}",
    )


def _check_shapes(config: RunConfig, sizes: dict[str, int]) -> None:
    model = config.model
    cuts = [("embed_dim", model.embed_dim, "embed")]
    if not model.is_recurrent:
        cuts += [
            ("num_heads", model.num_heads, "heads"),
            ("num_kv_heads", model.num_kv_heads, "kv_heads"),
            ("mlp_dim", model.mlp_dim, "mlp"),
        ]
    if model.query_latent_dim is not None:
        cuts.append(("query_latent_dim", model.query_latent_dim, "embed"))
    if model.kv_latent_dim is not None:
        cuts.append(("kv_latent_dim", model.kv_latent_dim, "embed"))
    if model.num_experts is not None:
        cuts.append(("num_experts", model.num_experts, "experts"))
        cuts.append(("expert_dim", model.expert_width, "mlp"))
    else:
        require(
            sizes["expert"] == 1,
            f"mesh.expert={sizes['expert']} must be 1 with model.num_experts=None: set "
            "model.num_experts, or use mesh.fsdp",
        )
    if model.vocab_size != "tokenizer":
        cuts.append(("vocab_size (padded)", model.num_padded_tokens, "vocab"))
    for name, value, axis in cuts:
        factors = {f"mesh.{axis}": sizes[axis] for axis in mesh_axes(axis)}
        num_devices = math.prod(sizes.values())
        _require_divisible(f"model.{name}={value}", value, factors, at_most=num_devices)


def _require_multiple(field: str, value: int, factor: int, why: str) -> None:
    """Refuses a value that is no multiple, with the two nearest that are."""
    below, above = value // factor * factor, -(-value // factor) * factor
    require(
        value % factor == 0,
        f"{field}={value} must be a multiple of {factor}: {why}; {field} may be "
        f"{f'{below} or {above}' if below else above}",
    )


def _require_divisible(field: str, value: int, factors: dict[str, int], *, at_most: int) -> None:
    """Refuses factors whose product does not divide a value, with products that do."""
    named = _product(factors)
    what = "their product" if " x " in named else named.partition("=")[0]
    require(
        value % math.prod(factors.values()) == 0,
        f"{field} must be a multiple of {named}; {what} may be {_divisors(value, at_most=at_most)}",
    )


def _product(factors: dict[str, int]) -> str:
    """Returns the fields of a product and their sizes, without those of size 1."""
    return " x ".join(f"{field}={size}" for field, size in factors.items() if size > 1)


def _divisors(value: int, *, at_most: int) -> str:
    return ", ".join(str(n) for n in range(1, min(value, at_most) + 1) if value % n == 0)
