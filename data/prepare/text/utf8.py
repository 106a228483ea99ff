"""Text as UTF-8, which every tokenizer and every file here is written in."""

from configs.errors import SettingsError


def utf8(text: str) -> bytes:
    """Returns the bytes of a text; SettingsError for half a UTF-16 pair, which is no character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the text has {text[error.start]!r} at character {error.start}, which UTF-8 cannot "
            "write; leave it out"
        ) from None


def utf8_len(text: str) -> int:
    """Returns how many bytes a text has, at no cost where they are its characters."""
    return len(text) if text.isascii() else len(utf8(text))
