"""Checks of settings; each failure names the field, what it was and what it must be."""

from configs.errors import SettingsError


def require(holds: bool, message: str) -> None:
    """Raises SettingsError with the message unless the condition holds."""
    if not holds:
        raise SettingsError(message)


def require_at_least(field: str, value: float, least: float) -> None:
    """Raises SettingsError if the value of a field is below its least."""
    require(value >= least, f"{field}={value} must be at least {least}")


def require_fraction(field: str, value: float) -> None:
    """Raises SettingsError unless 0 <= value < 1."""
    require(0 <= value < 1, f"{field}={value} must be at least 0 and below 1")
