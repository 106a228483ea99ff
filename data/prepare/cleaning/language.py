"""Step "language": keeps texts in the languages of data.languages."""

import functools
from typing import Any

from configs.data import PrepareConfig
from configs.errors import SettingsError
from configs.require import require
from configs.suggested_commands import pip_install
from data.prepare.cleaning.cleaning_step import CleaningStep, Dropped

SAMPLE_CHARACTERS = 20_000
"""Of a longer text only the beginning is read; it is enough to identify a language."""


def make_language(config: PrepareConfig) -> CleaningStep:
    """Returns a step that drops a text whose most likely language is not in data.languages.

    py3langid identifies 140 languages by byte n-grams (naive Bayes); "zxx" is no language. The rule
    is the code of the language, so that a report shows how much was dropped of each.

    Source: Lui and Baldwin 2012, langid.py, ACL System Demonstrations, P12-3005.
    """
    identifier = _identifier()
    known = identifier.labels
    for code in config.languages:
        require(
            code in known,
            f"data.languages={' '.join(config.languages)} must be of {' '.join(sorted(known))}, "
            f"but {code} is not one of them",
        )

    def check_language(text: str) -> str | Dropped:
        code, _ = identifier.classify(text[:SAMPLE_CHARACTERS])
        return text if code in config.languages else Dropped(f"language {code}")

    return check_language


@functools.cache
def _identifier() -> Any:
    """Returns the model of py3langid, which takes half a second to load."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise SettingsError(
            "data.clean=language needs the package py3langid; install it by "
            f"{pip_install('py3langid')}"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE)
