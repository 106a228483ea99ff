"""Learning rate as a function of the step."""

import jax.numpy as jnp
import optax

from configs.run import OptimConfig


def make_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate at each step: a linear warmup to the peak, then the schedule.

    Step 0 already learns: the warmup is peak * (step + 1) / num_warmup_steps. linear, cosine and
    wsd reach peak * final_lr_fraction at num_steps; inverse_sqrt is peak * sqrt(warmup / step).
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 3 (inverse_sqrt); Loshchilov and Hutter 2016,
    SGDR, arXiv:1608.03983, eq. 5 (cosine); Hu et al. 2024, MiniCPM, arXiv:2404.06395, eq. 1 (wsd).
    """
    peak, warmup = config.peak_lr, config.num_warmup_steps
    final, rest = peak * config.final_lr_fraction, num_steps - warmup
    after: optax.Schedule
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, final, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, max(rest, 1), config.final_lr_fraction)
        case "inverse_sqrt":
            after = _inverse_sqrt(peak, max(warmup, 1))
        case "wsd":
            decay = config.num_decay_steps or 0
            stable = optax.constant_schedule(peak)
            after = optax.join_schedules(
                [stable, optax.linear_schedule(peak, final, decay)], [rest - decay]
            )
    if warmup == 0:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def _inverse_sqrt(peak: float, warmup: int) -> optax.Schedule:
    return lambda step: peak * (warmup / jnp.maximum(warmup + step, 1)) ** 0.5
