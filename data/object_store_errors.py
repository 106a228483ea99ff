"""Errors of object stores: retryable ones apart from wrong settings."""

import contextlib
import errno
from collections.abc import Iterator

from configs.errors import SettingsError, TesseraError, Unavailable

_TEMPORARY = {
    *("ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"),
    *("ClientPayloadError", "IncompleteRead", "ResponseParserError", "TransportError"),
}
"""Classes of Python, botocore, aiohttp, requests and google.auth for network errors."""
_TEMPORARY_STATUS = (408, 409, 429)
"""And all from 500 on: HTTP statuses after which the same request may succeed later."""
_TEMPORARY_ERRNO = {
    *("EIO", "EREMOTEIO", "ESTALE", "EBUSY", "ENOMEM", "EMFILE", "ENFILE", "ENETDOWN"),
    *("ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
}


@contextlib.contextmanager
def explain_store_errors(url: str, done: str) -> Iterator[None]:
    """Turns errors of an object store into one line with the URL.

    Raises:
        SettingsError: the store does not have the file, or refuses the request.
        Unavailable: the store does not respond; a retry may help.
    """
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:  # each package of a store raises its own classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        way_out = "check the address, the credentials and the endpoint"
        kind = Unavailable if _is_temporary(error) else SettingsError
        raise kind(f"{url} cannot be {done}: {reason}; {way_out}") from error


def _is_temporary(error: Exception) -> bool:
    """Returns whether an error is of the network, a disk or a busy store, not of the request.

    s3fs turns error codes of a store into Python errors, all unknown ones into EIO: so the HTTP
    status decides, if there is one.
    """
    if _TEMPORARY.intersection(kind.__name__ for kind in type(error).__mro__):
        return True
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _TEMPORARY_STATUS
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode.get(number or 0) in _TEMPORARY_ERRNO


def _http_status(error: BaseException) -> int | None:
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)  # of botocore
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(raised, "status", getattr(raised, "code", None))  # of aiohttp, of gcsfs
        if isinstance(status, int):
            return status
    return None
