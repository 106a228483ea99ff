"""The table of steps that look at one document."""

from collections.abc import Callable, Iterable

from configs.data import CleanStep, PrepareConfig
from data.cleaning.boilerplate import drop_boilerplate_lines
from data.cleaning.c4 import clean_like_c4
from data.cleaning.characters import make_control_characters, make_length, normalise
from data.cleaning.gopher import check_quality, check_stop_words
from data.cleaning.language import make_language
from data.cleaning.markup import make_html
from data.cleaning.overlap import make_decontaminate
from data.cleaning.personal import mask_personal
from data.cleaning.repetition import check_repetition
from data.cleaning.step import Step

_MAKERS: dict[CleanStep, Callable[[PrepareConfig, Iterable[str]], Step]] = {
    "unicode": lambda config, overlap_texts: normalise,
    "html": lambda config, overlap_texts: make_html(),
    "control_characters": lambda config, overlap_texts: make_control_characters(),
    "boilerplate_lines": lambda config, overlap_texts: drop_boilerplate_lines,
    "length": lambda config, overlap_texts: make_length(config),
    "gopher_quality": lambda config, overlap_texts: check_quality,
    "gopher_stop_words": lambda config, overlap_texts: check_stop_words,
    "gopher_repetition": lambda config, overlap_texts: check_repetition,
    "c4": lambda config, overlap_texts: clean_like_c4,
    "language": lambda config, overlap_texts: make_language(config),
    "mask_personal": lambda config, overlap_texts: mask_personal,
    "decontaminate": make_decontaminate,
}
LOCAL_STEPS: tuple[CleanStep, ...] = tuple(_MAKERS)
"""Every CleanStep but those of DUPLICATE_STEPS, which compare documents."""


def make_step(name: CleanStep, config: PrepareConfig, overlap_texts: Iterable[str] = ()) -> Step:
    """Returns the step of a name; overlap_texts are read by "decontaminate" alone.

    Raises:
        KeyError: the name is none of LOCAL_STEPS.
        SettingsError: a step cannot work as it is set.
    """
    return _MAKERS[name](config, overlap_texts)
