"""Settings of mixtures of experts (MoE): experts, routing, load balancing."""

from dataclasses import dataclass
from typing import Literal

from configs.require import (
    Count,
    CountFromZero,
    CountOrNone,
    Incompatible,
    Positive,
    Weight,
    require,
)


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Experts; everything but num_experts is only read with num_experts."""

    num_experts: Incompatible[CountOrNone] = None
    """Experts of an MoE layer [E], routed per token; None is a dense model."""
    num_active_experts: int | None = None
    """Experts per token, the k of top-k routing [A]; only read with num_experts."""
    expert_dim: Incompatible[CountOrNone] = None
    """Hidden width of an expert; None is mlp_dim."""
    num_shared_experts: Incompatible[CountFromZero] = 0
    """Experts that every token goes through beside the routed ones, computed as one MLP of their
    total width (DeepSeek-V3)."""
    num_dense_layers: Incompatible[CountFromZero] = 0
    """Leading layers with a dense MLP of mlp_dim in place of experts (DeepSeek-V3 has 3)."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """How router logits become scores: softmax over all experts, or a sigmoid of each."""
    router_normalized: bool = True
    """Weights of the selected experts are divided by their sum (norm_topk_prob)."""
    router_scale: Positive = 1.0
    """Weights of the selected experts are multiplied by this (routed_scaling_factor)."""
    router_bias: Incompatible[bool] = False
    """Each expert has a bias used in selection only, updated from its load: balancing without an
    auxiliary loss (DeepSeek-V3)."""
    router_bias_rate: Weight = 0.001
    """Step of that update towards an even load, per training step; 0 keeps the bias."""
    num_expert_groups: Count = 1
    """Groups of experts; a token is routed within its best num_active_groups of them (node-limited
    routing)."""
    num_active_groups: int = 1
    """Top groups selected per token (DeepSeek's topk_group); a group's score is the sum of its two
    best experts."""
    expert_dispatch: Literal["dropless", "capacity"] = "dropless"
    """dropless computes every token; capacity drops tokens beyond the capacity of an expert."""
    expert_capacity_factor: Positive = 1.25
    """Capacity factor: maximum tokens per expert and sequence, as a multiple of an even load; only
    with expert_dispatch=capacity."""
    balance_weight: Weight = 0.01
    """Weight of the load-balancing loss, added to the cross entropy (0.01 as in Switch
    Transformer)."""
    router_z_weight: Weight = 0.0
    """Weight of the router z-loss: the mean of logsumexp(router logits)^2 (ST-MoE)."""

    def check_experts(self) -> None:
        """Raises SettingsError where settings of experts cannot be or do not fit each other."""
        E, A = self.num_experts, self.num_active_experts
        require(
            (E is None) == (A is None),
            f"model.num_active_experts={A} must be a number with model.num_experts and None "
            f"without, but model.num_experts={E}",
        )
        require(
            1 <= (A or 1) <= (E or 1),
            f"model.num_active_experts={A} must be at least 1 and at most model.num_experts={E}",
        )
        for name, none in (
            ("expert_dim", None),
            ("num_shared_experts", 0),
            ("num_dense_layers", 0),
            ("router_bias", False),
        ):
            value = getattr(self, name)
            require(
                E is not None or value == none,
                f"model.{name}={value} must be {none} with model.num_experts=None",
            )
        self._check_groups(E or 1, A or 1)

    def _check_groups(self, E: int, A: int) -> None:
        groups, active = self.num_expert_groups, self.num_active_groups
        require(
            1 <= active <= groups,
            f"model.num_active_groups={active} must be at least 1 and at most "
            f"model.num_expert_groups={groups}",
        )
        require(
            groups == 1 or (E % groups == 0 and 2 * groups <= E),
            f"model.num_experts={self.num_experts} must be a multiple of "
            f"model.num_expert_groups={groups}, two in each at least",
        )
        require(
            E // groups * active >= A,
            f"model.num_active_experts={A} must be at most {E // groups * active}, the experts in "
            f"model.num_active_groups={active} of model.num_expert_groups={groups}",
        )
