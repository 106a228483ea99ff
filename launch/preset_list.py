"""The presets in a table: their size, how long they train, what that costs and on what."""

import re

from configs.counts import count
from configs.peak_flops import PEAK_FLOPS
from configs.presets.table import FAMILIES, PRESETS

_SIZE = re.compile(r"([\d.,]+)( M)? parameters")
_TIME = re.compile(r"(about |a )?\S+ (minutes|hours?|days?) on [^.;]*?(cores|GPU|H100|chips)", re.I)
_FLOP = re.compile(r"(\S+) FLOP")
_UNITS = {"T": 1e12, "B": 1e9, "M": 1e6}
_MFU = 0.4


def preset_list() -> str:
    """Returns the usage of ./tessera train and every preset, in lines of at most 80 columns.

    Size and cost are what the description of a preset states. Where it states no time and hardware,
    the cost is its FLOPs and the time that they take on one H100.
    """
    lines = [
        "usage: ./tessera train PRESET [--flag value ...]",
        "       ./tessera train [PRESET] --config FILE [--flag value ...]",
        "",
        f"  {'preset':<17}  {'parameters':>10}  {'tokens':>7}  time and hardware",
    ]
    for title, presets in FAMILIES.items():
        lines += ["", title, *map(_line, presets)]
    return "\n".join(
        [
            *lines,
            "",
            f"H100 days are those of one GPU at {_MFU:.0%} of its peak.",
            "the settings of a preset: ./tessera train PRESET --help",
        ]
    )


def _line(name: str) -> str:
    config, stated = PRESETS[name](), " ".join(PRESETS[name].description.split())
    size = _SIZE.search(stated)
    assert size, f"the description of {name} states no size"
    parameters = float(size[1].replace(",", "")) * (1e6 if size[2] else 1)
    lengths = config.data.sequence_len + (config.data.target_len or 0)
    tokens = config.train.num_steps * config.train.batch_size * lengths
    time = _TIME.search(stated)
    if time:
        cost = time[0][0].lower() + time[0][1:]
    else:
        flop = _FLOP.search(stated)
        counts = count(config.model, config.data.sequence_len, config.data.target_len)
        flops = float(flop[1]) if flop else tokens * counts.flops_causal
        days = flops / (_MFU * PEAK_FLOPS["NVIDIA H100"]) / 86_400
        cost = f"{days:.{1 if days < 100 else 0}f} H100 days ({flops:.1e} FLOP)".replace("+", "")
    return f"  {name:<17}  {_short(parameters):>10}  {_short(tokens):>7}  {cost}"


def _short(number: float) -> str:
    letter = next((each for each, unit in _UNITS.items() if number > 0.999 * unit), "M")
    return f"{number / _UNITS[letter]:.3g} {letter}"
