"""Settings of a run, grouped as the command line shows them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from configs.attention_backends import check_backend
from configs.data import DataConfig
from configs.model import ModelConfig
from configs.require import (
    Count,
    CountFromZero,
    CountOrNone,
    Incompatible,
    Positive,
    PositiveOrNone,
    Rate,
    Safe,
    Share,
    Weight,
    at_least,
    below_power_of_2,
    check_bounds,
    require,
)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning rate schedule."""

    optimizer: Incompatible[Literal["adamw", "sgd"]] = "adamw"
    """AdamW with decoupled weight decay, or SGD with momentum."""
    peak_lr: Positive
    """Learning rate at the end of the warmup."""
    final_lr_fraction: Share = 0.1
    """Learning rate at the last step, relative to peak_lr; ignored by the schedules constant and
    inverse_sqrt."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "cosine"
    """Learning rate after the warmup; wsd (warmup-stable-decay) stays at the peak, then decays
    linearly."""
    num_warmup_steps: CountFromZero
    """Steps of linear warmup from zero."""
    num_decay_steps: CountOrNone = None
    """Steps of the final decay; only read with schedule=wsd."""
    b1: Rate = 0.9
    """Decay rate of AdamW's first moment, or SGD's momentum."""
    b2: Rate = 0.95
    """Decay rate of AdamW's second moment."""
    epsilon: Positive = 1e-8
    """Added to the square root of AdamW's second moment."""
    weight_decay: Weight = 0.1
    """Decoupled weight decay, multiplied by the learning rate; norms and biases have none."""
    max_grad_norm: PositiveOrNone = 1.0
    """Gradient clipping: the largest global norm; None is no clipping."""

    def __post_init__(self) -> None:
        check_bounds(self, "optim")
        require(
            (self.schedule == "wsd") == (self.num_decay_steps is not None),
            f"optim.num_decay_steps={self.num_decay_steps} must be a number of steps if "
            f"optim.schedule=wsd, else None; here optim.schedule={self.schedule}",
        )


AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
"""Axes of the mesh, the one whose devices talk least first."""
Devices = Annotated[int | Literal["rest"], at_least(1)]


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; the axis given as rest gets the remaining
    devices."""

    stage: Devices = 1
    """Pipeline parallelism: number of stages the layers are divided into."""
    data: Devices = "rest"
    """Data parallelism: replicas of the model, each with its part of the batch."""
    fsdp: Devices = 1
    """Fully sharded data parallelism (FSDP, ZeRO-3): number of shards of the state, each with its
    part of the batch."""
    expert: Devices = 1
    """Expert parallelism: number of shards of the experts, each with its part of the batch."""
    context: Devices = 1
    """Context parallelism: number of shards of each sequence."""
    tensor: Devices = 1
    """Tensor parallelism: number of shards of heads, MLP and vocabulary, all with the same part of
    the batch."""
    num_slices: Count = 1
    """Pod slices or nodes joined by a slower network, which the outer axes (stage, data, fsdp)
    cross."""
    num_stage_microbatches: CountOrNone = None
    """Microbatches in the pipeline at once; None is as many as stages."""
    num_stage_groups: Count = 1
    """Groups of layers per stage (interleaved, or circular, schedule): more make the pipeline
    bubble smaller."""
    sharded_state: Literal["all", "optimizer"] = "all"
    """What fsdp shards: parameters, gradients and optimizer state (ZeRO-3), or the optimizer state
    only (ZeRO-1)."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory between steps."""

    def __post_init__(self) -> None:
        check_bounds(self, "mesh")
        rest = [f"mesh.{name}" for name in AXES if getattr(self, name) == "rest"]
        require(
            len(rest) <= 1, f'{" and ".join(rest)} are both "rest"; give all but one of them a size'
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, on what batch size, from which seed."""

    num_steps: Count
    """Optimizer steps of the whole run."""
    batch_size: Count
    """Global batch size: sequences per step [B], over all hosts."""
    num_microbatches: Safe[Count] = 1
    """Gradient accumulation: parts in which a batch is computed one after the other; the result is
    that of the whole batch."""
    seed: Annotated[int, below_power_of_2(32)] = 0
    """Seed of the initial parameters, the order of the data and dropout."""
    log_every_steps: Safe[Count] = 10
    """Steps between logged metrics."""
    deterministic: bool = False
    """GPU: deterministic kernels and fixed autotuning, so that a resumed run is bit for bit the
    same."""

    def __post_init__(self) -> None:
        check_bounds(self, "train")
        require(
            self.batch_size % self.num_microbatches == 0,
            f"train.batch_size={self.batch_size} must be a multiple of "
            f"train.num_microbatches={self.num_microbatches}",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved and which checkpoints are kept. The last step is always saved."""

    every_steps: Count
    """Steps between checkpoints."""
    verify: Literal["full", "sizes"] = "full"
    """What is compared with the manifest before a restore: checksums (full), or file sizes only."""
    notice_sec: PositiveOrNone = None
    """Preemption notice: seconds from SIGTERM until the machine is taken away; None waits for the
    save."""
    durable_dir: str | None = None
    """Folder or URL (s3:// gs://) to which checkpoints, metrics and events are copied."""
    durable_every_steps: CountOrNone = None
    """Checkpoints at multiples of this many steps are copied, and the last; None copies each."""
    num_last: Count = 2
    """Number of newest checkpoints to keep."""
    num_best: CountFromZero = 1
    """Number of checkpoints with the lowest eval/loss to keep as well."""
    keep_every_steps: CountOrNone = None
    """Checkpoints at multiples of this many steps are never deleted; None keeps none for good."""

    def __post_init__(self) -> None:
        check_bounds(self, "checkpoint")
        durable = self.durable_every_steps
        require(
            durable is None or self.durable_dir is not None,
            f"checkpoint.durable_every_steps={durable} needs checkpoint.durable_dir="
            f"{self.durable_dir}: give a folder or a URL",
        )
        require(
            durable is None or durable % self.every_steps == 0,
            f"checkpoint.durable_every_steps={durable} must be a multiple of "
            f"checkpoint.every_steps={self.every_steps}",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation split, whole or a part of it."""

    every_steps: CountOrNone
    """Steps between evaluations; None evaluates only at the end."""
    batch_size: CountOrNone = None
    """Global batch size of evaluation, in sequences; None is train.batch_size."""
    max_tokens: CountOrNone = None
    """Tokens evaluated of each validation set, in whole sequences spread evenly over it, the same
    each time; None is all."""

    def __post_init__(self) -> None:
        check_bounds(self, "eval")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Text generated during training and written into the run folder."""

    every_steps: CountOrNone = None
    """Steps between samples; None samples only at the end."""
    prompts: tuple[str, ...] = ("",)
    """Prompt of each sample; an empty one begins a document."""
    num_tokens: Count = 128
    """Tokens generated per prompt."""
    temperature: Weight = 0.8
    """Sampling temperature: logits are divided by it; 0 is greedy."""
    top_k: CountOrNone = 40
    """Sample from the k most likely tokens only; None samples from all."""

    def __post_init__(self) -> None:
        check_bounds(self, "sample")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a run diverges, hangs, or a device computes wrongly.

    A step whose loss or gradient is not finite leaves the state as it was, always.
    """

    max_nonfinite_steps: Count = 20
    """Consecutive steps with a loss or gradient that is not finite, after which the run rolls back
    to the checkpoint before them."""
    spike_deviations: PositiveOrNone = 10.0
    """Loss spike: deviations above the median of the window from which a loss is high; None
    disables."""
    num_spike_steps: Count = 4
    """Consecutive high losses after which the run rolls back."""
    num_window_steps: Annotated[int, at_least(8)] = 128
    """Recent steps whose losses give the median and deviation that detect a spike; nonfinite and
    high losses are excluded."""
    max_rollbacks: CountFromZero = 3
    """Maximum rollbacks, each of which skips the batches that caused it; at the next divergence the
    run ends with exit code 76."""
    hang_limit_sec: PositiveOrNone = 1800.0
    """Hang timeout in seconds, for a step, evaluation or compilation that was timed fewer than
    three times, and for a save, fetch or upload that moves no byte; once timed, a step or
    evaluation may take 30 times its median. The run then ends with exit code 124. None disables.
    The default exceeds the longest compilation one would wait for."""
    replay_every_steps: CountOrNone = None
    """Steps between replays: the step is computed twice and compared bit by bit, to find faulty
    devices; None disables."""

    def __post_init__(self) -> None:
        check_bounds(self, "guard")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    checkpoint: Safe[CheckpointConfig]
    eval: Safe[EvalConfig]
    mesh: Safe[MeshConfig] = field(default_factory=MeshConfig)
    sample: Safe[SampleConfig] = field(default_factory=SampleConfig)
    guard: Safe[GuardConfig] = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        self._check_objective()
        require(
            self.model.num_positions is None or self.data.sequence_len <= self.model.num_positions,
            f"data.sequence_len={self.data.sequence_len} must be at most "
            f"model.num_positions={self.model.num_positions}, the number of learned positions",
        )
        num_decay_steps = self.optim.num_decay_steps or 0
        require(
            self.optim.num_warmup_steps + num_decay_steps <= self.train.num_steps,
            f"optim.num_warmup_steps={self.optim.num_warmup_steps} and optim.num_decay_steps="
            f"{num_decay_steps} must fit into train.num_steps={self.train.num_steps}; for a short "
            "trial pass --optim.num-warmup-steps 0",
        )

    def _check_objective(self) -> None:
        """Raises SettingsError where the model does not fit the objective."""
        model, data = self.model, self.data
        kinds = [name for name, _ in data.objectives()]
        objective = f"data.objective={data.objective}"
        is_masked = any(kind.startswith("masked") for kind in kinds)
        require(
            (model.architecture == "encoder") == is_masked,
            f"model.architecture={model.architecture} must be encoder with masked and masked_pairs "
            f"and only with them, but {objective}",
        )
        require(
            (model.architecture == "encoder_decoder") == (data.target_len is not None),
            f"data.target_len={data.target_len} must be a number of tokens if "
            "model.architecture=encoder_decoder, else None; here model.architecture="
            f"{model.architecture}",
        )
        require(
            not model.next_sentence or kinds == ["masked_pairs"],
            f"model.head={model.head} predicts the next sentence, which needs "
            f"data.objective=masked_pairs, but it is {data.objective}",
        )
        ahead = [kind for kind in kinds if kind in ("prefix", "span", "ul2")]
        require(
            not ahead or not model.is_recurrent,
            f"{objective} must be causal or infill with model.architecture={model.architecture}, "
            "which cannot attend to later tokens",
        )
        has_prefix = bool(ahead) and model.architecture == "decoder"
        check_backend(model.attention_backend, {"prefix": objective} if has_prefix else {})
        require(
            not ahead or model.mtp_depth == 0,
            f"model.mtp_depth={model.mtp_depth} must be 0 with {objective}",
        )

    @property
    def tokens_per_step(self) -> int:
        """Targets in a batch, padding included."""
        return self.train.batch_size * (self.data.target_len or self.data.sequence_len)
