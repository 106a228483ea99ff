"""All processes of a job meet before JAX connects them, so that one that stays away is named.

JAX's own coordination service ends a process by a signal when another does not come.

Process 0 listens at the coordinator's address. Each of the others, its guests, sends one line, says
that it is still there whenever it is asked, and hears in the end why it must end, or to go on.
"""

import contextlib
import errno
import re
import resource
import socket
import time

from configs.errors import SettingsError, TesseraError, Unavailable
from sharding.distributed.job import Job

_KINDS = {kind.exit_code: kind for kind in (SettingsError, Unavailable)}
_GO_ON = "tessera 0 go on"
_STILL_THERE, _HERE = "tessera still there?", "tessera here"
_RETRY_SEC = 0.2
_ANSWER_SEC = 5.0
"""How long something takes at most that a process does at once."""
_MAX_LINE_BYTES = 1 << 16
_OWN_HANDLES = 256
"""File handles that a process has beside those to the other processes, generously."""


def meet(job: Job) -> None:
    """Returns once every process of a job is there, all of them within a moment.

    The coordinator's address is free again afterwards. The limit on open files is raised to what
    the job needs, as far as that is allowed.

    Raises:
        Unavailable: one has not come or not answered within the limit, or the port of the
            coordinator is taken; that may pass.
        SettingsError: two do not fit together, or process 0 can never listen.

    Whatever it is, every process that has come says the same.
    """
    _allow_handles(job)
    deadline = time.monotonic() + job.rendezvous_timeout_sec
    (_receive if job.process_id == 0 else _arrive)(job, deadline)


def _receive(job: Job, deadline: float) -> None:
    """Waits for the others as process 0, and tells them how it ends."""
    guests: dict[int, socket.socket] = {}
    come: list[socket.socket] = []
    with _listen(job, deadline) as server:
        try:
            while len(guests) < job.num_processes - 1:
                _welcome(job, server, guests, come, deadline)
                if len(guests) == job.num_processes - 1:
                    _forget_silent(guests)
        except TesseraError as error:
            _dismiss(come, f"tessera {error.exit_code} {error}", server)
            raise
        _dismiss(come, _GO_ON)


def _listen(job: Job, deadline: float) -> socket.socket:
    """Returns the socket of process 0; a port in use may be that of the job's last start."""
    port, backlog = job.address[1], job.num_processes
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
                )
            return socket.create_server(("", port), backlog=backlog)
        except OSError as error:
            _raise_if_out_of_handles(error, job)
            kind = Unavailable if error.errno == errno.EADDRINUSE else SettingsError
            if kind is SettingsError or time.monotonic() > deadline:
                raise kind(
                    f"--coordinator={job.coordinator}: process 0 cannot listen at port {port} "
                    f"({error.strerror}); give a port that is free on its machine"
                ) from None
        _greet(
            job, ("localhost", port), deadline, _ANSWER_SEC
        )  # another process 0 refuses this one
        time.sleep(_RETRY_SEC)


def _welcome(
    job: Job,
    server: socket.socket,
    guests: dict[int, socket.socket],
    come: list[socket.socket],
    deadline: float,
) -> None:
    """Waits for the next that comes, and makes it a guest unless it is a stranger.

    Raises:
        Unavailable: nobody has come until the deadline.
        SettingsError: it does not fit to the others.
    """
    server.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        come.append(server.accept()[0])
    except TimeoutError:
        _forget_silent(guests)
        raise Unavailable(_missing(job, guests)) from None
    except OSError as error:
        _raise_if_out_of_handles(error, job)
        raise
    greeting = re.fullmatch(
        r"tessera (\d+) (\d+)", _read_line(come[-1], time.monotonic() + _ANSWER_SEC)
    )
    if greeting is None:
        come.pop().close()
        return
    process_id, num_processes = map(int, greeting.groups())
    if num_processes != job.num_processes:
        raise SettingsError(
            f"--num-processes={num_processes} of process {process_id} must be "
            f"{job.num_processes}, as in process 0"
        )
    before = {i: guest for i, guest in guests.items() if i == process_id}
    _forget_silent(before)  # it may have been started again
    if process_id == 0 or before:
        raise SettingsError(f"--process-id={process_id} is given to two processes")
    guests[process_id] = come[-1]


def _forget_silent(guests: dict[int, socket.socket]) -> None:
    """Removes the guests that do not answer: one that has ended has closed its connection."""
    for guest in guests.values():
        _send_line(guest, _STILL_THERE)
    deadline = time.monotonic() + _ANSWER_SEC
    for process_id, guest in list(guests.items()):
        if _read_line(guest, deadline) != _HERE:
            guests.pop(process_id).close()


def _dismiss(come: list[socket.socket], line: str, server: socket.socket | None = None) -> None:
    """Tells the end to all that have come, those too that still wait at a server to be let in."""
    for guest in come:
        _send_line(guest, line)
        guest.close()
    if server is not None:
        server.settimeout(0)
        with contextlib.suppress(OSError):  # no more
            while True:
                with server.accept()[0] as guest:
                    _read_line(guest, time.monotonic() + _ANSWER_SEC)  # or its end would be a reset
                    _send_line(guest, line)


def _missing(job: Job, arrived: dict[int, socket.socket]) -> str:
    absent = [str(i) for i in range(1, job.num_processes) if i not in arrived]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return (
        f"process {', '.join(absent[:8])}{more} of {job.num_processes} did not come to "
        f"--coordinator={job.coordinator} within {job.rendezvous_timeout_sec:g} s: start the same "
        "command in every process, or give a longer --rendezvous-timeout-sec"
    )


def _arrive(job: Job, deadline: float) -> None:
    """Goes to process 0, again and again until it is there, and returns if all may go on."""
    answer_sec = job.rendezvous_timeout_sec + _ANSWER_SEC  # it decides at a deadline of its own
    while not _greet(job, job.address, deadline, answer_sec):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"process 0 did not answer at --coordinator={job.coordinator} within "
                f"{job.rendezvous_timeout_sec:g} s: start the same command there too, at an "
                "address that every process can reach"
            )
        time.sleep(_RETRY_SEC)


def _greet(job: Job, address: tuple[str, int], deadline: float, answer_sec: float) -> bool:
    """Says whether process 0 lets this process go on; False if there is none, or it has ended.

    Raises:
        SettingsError, Unavailable: what process 0 says to all.
    """
    try:
        with socket.create_connection(
            address, timeout=max(deadline - time.monotonic(), 0.01)
        ) as host:
            _send_line(host, f"tessera {job.process_id} {job.num_processes}")
            while (line := _read_line(host, time.monotonic() + answer_sec)) == _STILL_THERE:
                _send_line(host, _HERE)
    except OSError as error:  # not there yet, or its name is not known yet
        _raise_if_out_of_handles(error, job)
        return False
    ending = re.fullmatch(r"tessera (\d+) (.+)", line)
    if ending and int(ending[1]) in _KINDS:
        raise _KINDS[int(ending[1])](ending[2])
    return line == _GO_ON


def _send_line(peer: socket.socket, line: str) -> None:
    """Sends a line, of which one that is gone hears nothing."""
    with contextlib.suppress(OSError):
        peer.sendall(f"{line}\n".encode())


def _read_line(peer: socket.socket, deadline: float) -> str:
    """Returns the line that a peer sends, nothing where it sends none."""
    text = b""
    while not text.endswith(b"\n") and len(text) < _MAX_LINE_BYTES:
        try:
            peer.settimeout(max(deadline - time.monotonic(), 0.01))
            part = peer.recv(4096)
        except OSError:
            return ""
        if not part:
            return ""
        text += part
    return text.decode(errors="replace").strip()


def _handles(job: Job) -> int:
    return job.num_processes + _OWN_HANDLES


def _allow_handles(job: Job) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _handles(job)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _raise_if_out_of_handles(error: OSError, job: Job) -> None:
    if error.errno == errno.EMFILE:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise SettingsError(
            f"process {job.process_id} may open no more files: ulimit -n allows {allowed}, and a "
            f"job of {job.num_processes} processes needs about {_handles(job)}; allow more on its "
            f"machine (ulimit -Hn {_handles(job)}, or nofile in limits.conf)"
        ) from None
    if error.errno == errno.ENFILE:
        raise Unavailable(
            f"the machine of process {job.process_id} has no file handles left (fs.file-max), of "
            f"which a job of {job.num_processes} processes needs about {_handles(job)}"
        ) from None
