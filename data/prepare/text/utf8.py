"""Text as UTF-8, the encoding of every tokenizer and every file here."""

from configs.errors import SettingsError


def utf8(text: str) -> bytes:
    """Returns the bytes of a text; raises SettingsError for a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"the text has {text[error.start]!r} at character {error.start}, which UTF-8 cannot "
            "encode; remove it"
        ) from None


def utf8_len(text: str) -> int:
    """Returns the number of bytes of a text in UTF-8; fast for ASCII."""
    return len(text) if text.isascii() else len(utf8(text))
