"""What goes to and from a store: counted on its way, and its errors told apart."""

import contextlib
import errno
from collections.abc import Iterator

from configs.errors import SettingsError, TesseraError, Unavailable

_MAY_PASS = {
    *("ConnectionError", "TimeoutError", "HTTPClientError", "ClientConnectionError"),
    *("ClientPayloadError", "IncompleteRead", "ResponseParserError", "TransportError"),
}
"""Classes of Python, botocore, aiohttp, requests and google.auth, of what a network does."""
_MAY_PASS_STATUS = (408, 409, 429)
"""And all from 500 on: what an HTTP server says where the same request may do later."""
_MAY_PASS_ERRNO = {
    *("EIO", "EREMOTEIO", "ESTALE", "EBUSY", "ENOMEM", "EMFILE", "ENFILE", "ENETDOWN"),
    *("ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
}


@contextlib.contextmanager
def explain_store_errors(url: str, done: str) -> Iterator[None]:
    """Turns what goes wrong with a file of a store into one line that names it.

    Raises:
        SettingsError: the store does not have it or does not take it.
        Unavailable: the store did not answer, which may pass.
    """
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:  # each package of a store raises classes of its own
        said = " ".join(f"{type(error).__name__}: {error}".split())
        way_out = "check the address, the credentials and the endpoint"
        kind = Unavailable if _may_pass(error) else SettingsError
        raise kind(f"{url} cannot be {done}: {said}; {way_out}") from error


def _may_pass(error: Exception) -> bool:
    """Says whether an error is one of the network, a disk or a busy store, not of what was asked.

    s3fs turns the answers of a store into errors of Python, of unknown codes all into EIO: so the
    HTTP status counts, where there is one.
    """
    if _MAY_PASS.intersection(kind.__name__ for kind in type(error).__mro__):
        return True
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _MAY_PASS_STATUS
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode.get(number or 0) in _MAY_PASS_ERRNO


def _http_status(error: BaseException) -> int | None:
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)  # of botocore
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(raised, "status", getattr(raised, "code", None))  # of aiohttp, of gcsfs
        if isinstance(status, int):
            return status
    return None
