"""The table of cleaning steps that read one document at a time."""

from collections.abc import Callable, Iterable

from configs.data import CleanStep, PrepareConfig
from data.prepare.cleaning.boilerplate import drop_boilerplate_lines
from data.prepare.cleaning.c4 import clean_like_c4
from data.prepare.cleaning.characters import make_control_characters, make_length, normalise
from data.prepare.cleaning.cleaning_step import CleaningStep
from data.prepare.cleaning.decontaminate import make_decontaminate
from data.prepare.cleaning.gopher import check_quality, check_stop_words
from data.prepare.cleaning.html import make_html
from data.prepare.cleaning.language import make_language
from data.prepare.cleaning.personal_data import mask_personal
from data.prepare.cleaning.repetition import check_repetition

_MAKERS: dict[CleanStep, Callable[[PrepareConfig, Iterable[str]], CleaningStep]] = {
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


def make_cleaning_step(
    name: CleanStep, config: PrepareConfig, overlap_texts: Iterable[str] = ()
) -> CleaningStep:
    """Returns the step of a name; only "decontaminate" reads overlap_texts.

    Raises:
        KeyError: the name is none of LOCAL_STEPS.
        SettingsError: the settings of the step cannot be used.
    """
    return _MAKERS[name](config, overlap_texts)
