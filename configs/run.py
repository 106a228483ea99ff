"""Settings of a run, grouped as the command line shows them."""

from dataclasses import dataclass, field
from typing import Literal

from configs.check import require, require_at_least, require_fraction
from configs.data import DataConfig
from configs.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How gradients become updates."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW with decoupled weight decay, or SGD with momentum."""
    peak_lr: float
    """Learning rate at the end of the warmup."""
    final_lr_fraction: float = 0.1
    """Learning rate at the last step, as a part of peak_lr; constant and inverse_sqrt ignore it."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "cosine"
    """What follows the warmup; wsd stays at the peak and then decays linearly."""
    num_warmup_steps: int
    """Steps over which the learning rate rises linearly from zero."""
    num_decay_steps: int | None = None
    """Steps of the final decay of schedule=wsd; only read there."""
    b1: float = 0.9
    """Decay of the first moment (AdamW), or the momentum (SGD)."""
    b2: float = 0.95
    """Decay of the second moment (AdamW)."""
    epsilon: float = 1e-8
    """Added to the root of the second moment (AdamW)."""
    weight_decay: float = 0.1
    """Decay of matrices per step, times the learning rate; norms and biases are never decayed."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; None leaves them."""

    def __post_init__(self) -> None:
        require(self.peak_lr > 0, f"optim.peak_lr={self.peak_lr} must be above zero")
        require(
            0 <= self.final_lr_fraction <= 1,
            f"optim.final_lr_fraction={self.final_lr_fraction} must be between 0 and 1",
        )
        require_at_least("optim.num_warmup_steps", self.num_warmup_steps, 0)
        require(
            (self.schedule == "wsd") == (self.num_decay_steps is not None),
            f"optim.num_decay_steps={self.num_decay_steps} must be a number of steps with "
            f"optim.schedule=wsd and None otherwise, but optim.schedule={self.schedule}",
        )
        require_at_least("optim.num_decay_steps", self.num_decay_steps or 1, 1)
        require_fraction("optim.b1", self.b1)
        require_fraction("optim.b2", self.b2)
        require(self.epsilon > 0, f"optim.epsilon={self.epsilon} must be above zero")
        require_at_least("optim.weight_decay", self.weight_decay, 0)
        require(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            f"optim.max_grad_norm={self.max_grad_norm} must be above zero, or None for no clipping",
        )


AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
"""Axes of the mesh, the one whose devices talk least first."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each axis of the mesh; one axis may take the "rest"."""

    stage: int | Literal["rest"] = 1
    """Parts that the layers are cut into, which the microbatches of a batch go through in turn."""
    data: int | Literal["rest"] = "rest"
    """Replicas of the model, each with its own part of the batch."""
    fsdp: int | Literal["rest"] = 1
    """Parts that the state is cut into (fully sharded), each with its own part of the batch."""
    expert: int | Literal["rest"] = 1
    """Parts that the experts are cut into; each has its own part of the batch."""
    context: int | Literal["rest"] = 1
    """Parts that every row is cut into."""
    tensor: int | Literal["rest"] = 1
    """Parts that heads, MLP and vocabulary are cut into, all with the same part of the batch."""
    num_slices: int = 1
    """Pods or nodes that a slower network joins; the outer axes (stage, data, fsdp) cross it."""
    num_stage_microbatches: int | None = None
    """Parts of a batch on their way through the stages at once; None is as many as stages."""
    num_stage_groups: int = 1
    """Groups of layers that each stage holds: a batch goes around so often (circular schedule)."""
    sharded_state: Literal["all", "optimizer"] = "all"
    """What fsdp cuts: parameters, gradients and moments, or only the moments (ZeRO-1)."""
    offload_optimizer: bool = False
    """Keep the moments in the memory of the host between two steps."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in AXES}
        for name, size in sizes.items():
            if size != "rest":
                require_at_least(f"mesh.{name}", size, 1)
        rest = [f"mesh.{name}" for name, size in sizes.items() if size == "rest"]
        require(
            len(rest) <= 1, f'{" and ".join(rest)} are both "rest"; give all but one of them a size'
        )
        require_at_least("mesh.num_slices", self.num_slices, 1)
        require_at_least("mesh.num_stage_microbatches", self.num_stage_microbatches or 1, 1)
        require_at_least("mesh.num_stage_groups", self.num_stage_groups, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, and from which seed."""

    num_steps: int
    """Optimizer steps of the whole run."""
    batch_size: int
    """Sequences in a step [B], over all hosts."""
    num_microbatches: int = 1
    """Parts that a batch is computed in, one after the other; the result is that of the whole."""
    seed: int = 0
    """Of the initial parameters, the order of the data and dropout."""
    log_every_steps: int = 10
    """Steps between lines of metrics."""
    deterministic: bool = False
    """On GPU: deterministic kernels and fixed autotuning, so that a resume is bit for bit."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "num_microbatches", "log_every_steps"):
            require_at_least(f"train.{name}", getattr(self, name), 1)
        require(0 <= self.seed < 2**32, f"train.seed={self.seed} must be at least 0 and below 2^32")
        require(
            self.batch_size % self.num_microbatches == 0,
            f"train.batch_size={self.batch_size} must be a multiple of "
            f"train.num_microbatches={self.num_microbatches}",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved and which saves are kept. The last step is always saved."""

    every_steps: int
    """Steps between checkpoints."""
    verify: Literal["full", "sizes"] = "full"
    """What is compared with the manifest before a restore: all bytes, or only sizes of files."""
    notice_sec: float | None = None
    """Seconds from SIGTERM to the end of a machine that is taken away; None waits for the save."""
    durable_dir: str | None = None
    """Folder or URL (s3:// gs://) that some checkpoints are copied to, with metrics and events."""
    durable_every_steps: int | None = None
    """Copied are checkpoints at multiples of this many steps, and the last; None copies each."""
    num_last: int = 2
    """The newest checkpoints that are kept."""
    num_best: int = 1
    """Checkpoints of the lowest eval/loss that are kept beside them."""
    keep_every_steps: int | None = None
    """Checkpoints at multiples of this many steps are kept for good."""

    def __post_init__(self) -> None:
        require_at_least("checkpoint.every_steps", self.every_steps, 1)
        require_at_least("checkpoint.num_last", self.num_last, 1)
        require_at_least("checkpoint.num_best", self.num_best, 0)
        require_at_least("checkpoint.keep_every_steps", self.keep_every_steps or 1, 1)
        require(
            self.notice_sec is None or self.notice_sec > 0,
            f"checkpoint.notice_sec={self.notice_sec} must be above zero, or None to wait",
        )
        durable = self.durable_every_steps
        require(
            durable is None or self.durable_dir is not None,
            f"checkpoint.durable_every_steps={durable} needs checkpoint.durable_dir="
            f"{self.durable_dir}: give a folder or a URL",
        )
        require(
            durable is None or (durable >= 1 and durable % self.every_steps == 0),
            f"checkpoint.durable_every_steps={durable} must be a multiple of "
            f"checkpoint.every_steps={self.every_steps}",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation split, whole or a part of it."""

    every_steps: int | None
    """Steps between evaluations; None evaluates only at the end."""
    batch_size: int | None = None
    """Sequences in a batch of evaluation, over all hosts; None takes train.batch_size."""
    max_tokens: int | None = None
    """Tokens of each validation set that are evaluated, in whole sequences spread evenly over it,
    the same ones each time; None evaluates all of it."""

    def __post_init__(self) -> None:
        require_at_least("eval.every_steps", self.every_steps or 1, 1)
        require_at_least("eval.batch_size", self.batch_size or 1, 1)
        require_at_least("eval.max_tokens", 1 if self.max_tokens is None else self.max_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Text that is written into the run folder while it trains."""

    every_steps: int | None = None
    """Steps between samples; None writes none but the last."""
    prompts: tuple[str, ...] = ("",)
    """What each sample begins with; an empty prompt begins a document."""
    num_tokens: int = 128
    """Tokens that are written after each prompt."""
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = 40
    """Only the k most likely tokens are drawn from; None draws from all."""

    def __post_init__(self) -> None:
        require_at_least("sample.every_steps", self.every_steps or 1, 1)
        require_at_least("sample.num_tokens", self.num_tokens, 1)
        require_at_least("sample.temperature", self.temperature, 0)
        require_at_least("sample.top_k", self.top_k or 1, 1)


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when a run diverges, hangs, or a device computes wrongly.

    A step whose loss or gradient is not finite leaves the state as it was, always.
    """

    max_skipped_steps: int = 20
    """Skipped steps in a row after which the run goes back to the checkpoint before them."""
    spike_deviations: float | None = 10.0
    """A loss so many deviations above the median of the window is high; None looks at none."""
    num_spike_steps: int = 4
    """High losses in a row after which the run goes back."""
    num_window_steps: int = 128
    """Steps whose losses make the median and the deviation, skipped and high ones left out."""
    max_rollbacks: int = 3
    """How often the run goes back and passes over the batches that did it, before it ends (76)."""
    hang_limit_sec: float | None = 1800.0
    """Seconds that one thing may take (a step, an evaluation, compilation) before it was timed
    three times, or that a save, fetch or upload may go without a byte, before the run is ended
    (124); None waits for ever. The default is above the longest compilation one would wait for."""
    hang_factor: float = 30.0
    """From then on a thing may take this many times its own median, and a minute in any case."""
    replay_every_steps: int | None = None
    """Every so many steps the step is computed twice and compared bit by bit; None never."""

    def __post_init__(self) -> None:
        for name in ("max_skipped_steps", "num_spike_steps"):
            require_at_least(f"guard.{name}", getattr(self, name), 1)
        require_at_least("guard.num_window_steps", self.num_window_steps, 8)
        require_at_least("guard.max_rollbacks", self.max_rollbacks, 0)
        require_at_least("guard.replay_every_steps", self.replay_every_steps or 1, 1)
        require_at_least("guard.hang_factor", self.hang_factor, 1)
        for name in ("spike_deviations", "hang_limit_sec"):
            value = getattr(self, name)
            require(value is None or value > 0, f"guard.{name}={value} must be above zero, or None")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        self._check_objective()
        require(
            self.model.num_positions is None or self.data.sequence_len <= self.model.num_positions,
            f"data.sequence_len={self.data.sequence_len} must be at most "
            f"model.num_positions={self.model.num_positions}, the rows of the learned table",
        )
        num_decay_steps = self.optim.num_decay_steps or 0
        require(
            self.optim.num_warmup_steps + num_decay_steps <= self.train.num_steps,
            f"optim.num_warmup_steps={self.optim.num_warmup_steps} and optim.num_decay_steps="
            f"{num_decay_steps} must fit into train.num_steps={self.train.num_steps}; for a short "
            "trial pass --optim.num-warmup-steps 0",
        )

    def _check_objective(self) -> None:
        """Refuses a model that cannot be asked what the data asks."""
        model, data = self.model, self.data
        kinds = [name for name, _ in data.objectives()]
        asked = f"data.objective={data.objective}"
        is_masked = any(kind.startswith("masked") for kind in kinds)
        require(
            (model.architecture == "encoder") == is_masked,
            f"model.architecture={model.architecture} does not fit {asked}: an encoder needs "
            "masked or masked_pairs, and others need another one",
        )
        require(
            (model.architecture == "encoder_decoder") == (data.target_len is not None),
            f"data.target_len={data.target_len} must be a number of tokens with "
            "model.architecture=encoder_decoder and None otherwise, but model.architecture="
            f"{model.architecture}",
        )
        require(
            not model.next_sentence or kinds == ["masked_pairs"],
            f"model.next_sentence={model.next_sentence} needs data.objective=masked_pairs, but it "
            f"is {data.objective}",
        )
        ahead = [kind for kind in kinds if kind in ("prefix", "span", "ul2")]
        require(
            not ahead or not model.is_recurrent,
            f"{asked} lets tokens see later ones, which model.architecture={model.architecture} "
            "cannot: give causal or infill",
        )
        require(
            not ahead or model.num_future_tokens == 0,
            f"model.num_future_tokens={model.num_future_tokens} must be 0 with {asked}",
        )

    @property
    def tokens_per_step(self) -> int:
        """Targets in a batch, padding included."""
        return self.train.batch_size * (self.data.target_len or self.data.sequence_len)
