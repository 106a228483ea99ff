"""What can end a command on purpose. `launch` turns each into one message and an exit code."""


class TesseraError(Exception):
    """Something a person can act on; the message says what was given, and what to do instead.

    `exit_code` is that of the command which ends with it.
    """

    exit_code: int


class SettingsError(TesseraError, ValueError):
    """Usage, a setting or a raw text that cannot work; raised before anything is compiled."""

    exit_code = 2


class IntegrityError(TesseraError):
    """Prepared data or a checkpoint is not what its manifest says."""

    exit_code = 65


class Stopped(TesseraError):
    """Stopped from outside (SIGTERM, Ctrl-C) after the state was saved; start again to go on."""

    exit_code = 75


class Unavailable(TesseraError):
    """Storage or another process did not answer in time, which may pass; start again."""

    exit_code = 75


class Diverged(TesseraError):
    """The run diverged, and going back to a good checkpoint did not help."""

    exit_code = 76


class Corrupted(TesseraError):
    """A device computed another result from the same state and batch."""

    exit_code = 1


class CheckFailed(TesseraError):
    """What was looked at is not as it must be."""

    exit_code = 1


class Hung(TesseraError):
    """Something took longer than its limit allows."""

    exit_code = 124


INTERNAL_ERROR, OUT_OF_MEMORY = 70, 71

_HELPED_BY_A_RESTART = (
    Corrupted.exit_code,
    Stopped.exit_code,
    Hung.exit_code,
    INTERNAL_ERROR,
)


def closing_line(message: str, exit_code: int, command: str | None) -> str:
    """Returns the last line of a run: why it ended, and the command that resumes it, if any."""
    line = f"{message} (exit code {exit_code})"
    is_resumed = command and exit_code in _HELPED_BY_A_RESTART
    return f"{line}; resume with: {command}" if is_resumed else line


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code of a command that ends with an error, whosever it is."""
    if isinstance(error, TesseraError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return Stopped.exit_code
    return OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else INTERNAL_ERROR
