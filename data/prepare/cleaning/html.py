"""Step "html": extracts the text of web pages."""

import re

from data.prepare.cleaning.cleaning_step import CleaningStep, Dropped

MAX_DEPTH = 2000
"""Nesting depth of elements; the time of extraction grows with its square."""

_ELEMENTS = (
    "html head body title meta link main article section aside nav header footer div p span a "
    "h[1-6] ul ol li dl dt dd table thead tbody tr td th blockquote pre code img figure form br hr "
    "b i em strong font center script style"
)
_PREAMBLE = re.compile(r"(?:\s|\ufeff|<!--.*?-->|<\?xml.*?\?>)*", re.DOTALL)
_DOCUMENT = re.compile(r"<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_ELEMENT = re.compile(rf"<(?:{'|'.join(_ELEMENTS.split())})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_NESTING = re.compile(
    r"<(/?)(?:div|span|font|b|i|u|em|strong|a|center|blockquote|section|article|table|ul|ol|dl)\b",
    re.IGNORECASE,
)


def is_html(text: str) -> bool:
    """Returns whether a text is an HTML page or a part of one, not a text that shows some tags.

    A page begins, after comments, with <!doctype html>, <html>, <head> or <body>, or begins with
    the tag of another element of HTML and ends with a ">".
    """
    start = _PREAMBLE.match(text)
    begin = start.end() if start else 0
    if _DOCUMENT.match(text, begin):
        return True
    return _ELEMENT.match(text, begin) is not None and text.rstrip().endswith(">")


def make_html() -> CleaningStep:
    """Returns a step that extracts the main content of a page as text.

    Scripts, navigation, side bars, footers, forms and alternative texts are removed; blank lines
    separate paragraphs, and <pre> keeps its layout. Menus are recognised by position and by short
    links, so a list of very short items may be removed with them. Other text is unchanged. A page
    nested deeper than any browser shows is dropped.

    Source: Bevendorff et al. 2018, Elastic ChatNoir (Resiliparse), as used for web text by Li et
    al. 2024, DataComp-LM, arXiv:2406.11794, section 4.2.
    """
    from resiliparse.extract.html2text import extract_plain_text

    def to_text(text: str) -> str | Dropped:
        if not is_html(text):
            return text
        if _depth(text) > MAX_DEPTH:
            return Dropped("nested too deeply")
        return extract_plain_text(text.lstrip("\ufeff"), main_content=True, alt_texts=False)

    return to_text


def _depth(html: str) -> int:
    depth = deepest = 0
    for tag in _NESTING.finditer(html):
        depth = max(depth - 1, 0) if tag[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest
