"""Settings of mixtures of experts: how many there are, how they are chosen and kept balanced."""

from dataclasses import dataclass
from typing import Literal

from configs.check import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Experts; all but num_experts is only read where there are some."""

    num_experts: int | None = None
    """MLPs of a block [E], of which a router picks some for each token; None is one for all."""
    num_active_experts: int | None = None
    """Experts that compute a token [A]; only read with num_experts."""
    expert_dim: int | None = None
    """Hidden width of an expert; None takes mlp_dim."""
    num_shared_experts: int = 0
    """Experts that compute every token beside those that are chosen, as one MLP of their width."""
    num_dense_layers: int = 0
    """First layers that have one MLP of mlp_dim in place of experts (DeepSeek-V3)."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """How scores become probabilities: of all experts together, or of each by itself."""
    router_normalized: bool = True
    """The weights of the chosen experts are divided by their sum."""
    router_scale: float = 1.0
    """The weights of the chosen experts are multiplied by it."""
    router_bias: bool = False
    """Each expert has a bias for the choice alone, which follows the load (DeepSeek-V3)."""
    router_bias_rate: float = 0.001
    """By how much that bias moves towards an even load in each step; 0 leaves it."""
    num_expert_groups: int = 1
    """Groups of experts; only the best num_active_groups of them are chosen from."""
    num_active_groups: int = 1
    """Groups that a token's experts are in at most; their score is the sum of their best two."""
    expert_dispatch: Literal["dropless", "capacity"] = "dropless"
    """dropless computes every token; capacity leaves out what is beyond an expert's places."""
    expert_capacity_factor: float = 1.25
    """Places of an expert in a row, over its even share; only with expert_dispatch=capacity."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss of the router beside the cross entropy."""
    router_z_weight: float = 0.0
    """Weight of the mean square of the router's log of the sum of exp(score)."""

    def check_experts(self) -> None:
        """Raises SettingsError where settings of experts cannot be or do not fit each other."""
        E, A = self.num_experts, self.num_active_experts
        require(
            (E is None) == (A is None),
            f"model.num_active_experts={A} must be a number with model.num_experts and None "
            f"without, but model.num_experts={E}",
        )
        require_at_least("model.num_experts", E or 1, 1)
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
            require_at_least(f"model.{name}", value or 0, 0)
        require_at_least("model.expert_dim", 1 if self.expert_dim is None else self.expert_dim, 1)
        for name in ("expert_capacity_factor", "router_scale"):
            value = getattr(self, name)
            require(value > 0, f"model.{name}={value} must be above zero")
        for name in ("balance_weight", "router_z_weight", "router_bias_rate"):
            require_at_least(f"model.{name}", getattr(self, name), 0)
        self._check_groups(E or 1, A or 1)

    def _check_groups(self, E: int, A: int) -> None:
        groups, active = self.num_expert_groups, self.num_active_groups
        require_at_least("model.num_expert_groups", groups, 1)
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
