"""Step "c4": the rules of the Colossal Clean Crawled Corpus."""

import re

from data.prepare.cleaning.boilerplate import POLICY_PHRASES
from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.word_split import split_words

MIN_SENTENCES = 3
MIN_WORDS_PER_LINE = 5

_FULL_WIDTH = "\u3002\uff01\uff1f\uff0e\uff61\u2026"  # of Chinese and Japanese, and the ellipsis
_OTHER_SCRIPTS = (
    "\u061f\u06d4"  # Arabic and Urdu
    "\u0964\u0965"  # Hindi and others of India
    "\u0589\u104a\u104b\u1362\u1367\u17d4\u17d5\u0f0d"  # Armenian Myanmar Ethiopic Khmer Tibetan
)
_END_QUOTES = "\"'\u201d\u2019\u00bb\u300d\u300f"
_TERMINAL = tuple(f".!?{_FULL_WIDTH}{_OTHER_SCRIPTS}{_END_QUOTES}")
_SENTENCE_END = re.compile(
    rf"[.!?]+[{_END_QUOTES})\]]*(?=\s|$)|[{_FULL_WIDTH}{_OTHER_SCRIPTS}]+"
    # Thai and Lao end a sentence with a space alone.
    r"|(?<=[\u0e00-\u0eff])[ \t]+(?=[\u0e00-\u0eff])|(?<=[\u0e00-\u0eff])$"
)
_THAI_OR_LAO = re.compile(r"[\u0e00-\u0eff]\Z")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


def clean_like_c4(text: str) -> str | Dropped:
    """Returns the lines that C4 keeps, or drops the text by its rules on pages.

    Citation marks ("[1]", "[edit]", "[citation needed]") are removed. A line stays if it ends with
    a terminal mark (. ! ? or an end quote), has at least 5 words, and holds neither the word
    JavaScript nor a phrase of a notice about policies. The page is dropped if it holds "lorem
    ipsum" or "{", or if fewer than 3 sentences are left.

    Beyond the paper: terminal marks of other scripts count as well, such as the full-width ones of
    Chinese and Japanese, and the ellipsis; a line of Thai or Lao, which have no such mark, may end
    with a letter; of scripts without spaces each letter is a word; sentences are counted by their
    marks (the authors use a trained splitter). Not applied are the list of bad words, which drops
    texts about and by minorities (Dodge et al. 2021, arXiv:2104.08758, section 5.3), the repeated
    three-sentence spans (see the duplicate steps) and langdetect (see the step "language").

    Source: Raffel et al. 2020, JMLR 21(140), arXiv:1910.10683, section 2.2.
    """
    if "lorem ipsum" in text.lower():
        return Dropped("lorem ipsum")
    if "{" in text:
        return Dropped("curly bracket")
    lines = [_CITATION.sub("", line).strip() for line in text.split("\n")]
    kept = [line for line in lines if _is_kept(line)]
    if sum(max(1, len(_SENTENCE_END.findall(line))) for line in kept) < MIN_SENTENCES:
        return Dropped(f"fewer than {MIN_SENTENCES} sentences")
    return "\n".join(kept)


def _is_kept(line: str) -> bool:
    if not (line.endswith(_TERMINAL) or _THAI_OR_LAO.search(line)):
        return False
    lower = line.lower()
    if "javascript" in lower or any(phrase in lower for phrase in POLICY_PHRASES):
        return False
    return len(split_words(line)) >= MIN_WORDS_PER_LINE
