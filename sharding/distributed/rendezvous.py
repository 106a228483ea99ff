"""Rendezvous of a job's processes before JAX connects them, to report which one is missing.

JAX's coordination service ends a process by a signal when another does not connect.

Process 0 listens at the coordinator's address. Each of the others, its peers, sends one line,
answers every probe, and finally receives an error with its reason, or that all are there.
"""

import contextlib
import errno
import re
import resource
import socket
import time

from configs.errors import SettingsError, TesseraError, Unavailable
from sharding.distributed.job import Job

_ERRORS = {kind.exit_code: kind for kind in (SettingsError, Unavailable)}
_ALL_THERE = "tessera 0 go on"
_STILL_THERE, _HERE = "tessera still there?", "tessera here"
_RETRY_SEC = 0.2
_ANSWER_SEC = 5.0
"""Longest time a process takes to answer a probe."""
_MAX_LINE_BYTES = 1 << 16
_OWN_FILES = 256
"""File handles a process has beside its connections, a generous bound."""


def meet(job: Job) -> None:
    """Returns once every process of a job has connected, at nearly the same time in all.

    The coordinator's address is free again afterwards. The limit on open files is raised to what
    the job needs, as far as that is allowed.

    Raises:
        Unavailable: one has not connected or answered within the limit, or the port of the
            coordinator is taken; a retry may help.
        SettingsError: two do not fit together, or process 0 can never listen.

    Every process that has connected raises the same error.
    """
    _raise_file_limit(job)
    deadline = time.monotonic() + job.rendezvous_timeout_sec
    (_host if job.process_id == 0 else _join)(job, deadline)


def _host(job: Job, deadline: float) -> None:
    """Waits for the others as process 0, and sends them the outcome."""
    peers: dict[int, socket.socket] = {}
    connections: list[socket.socket] = []
    with _listen(job, deadline) as server:
        try:
            while len(peers) < job.num_processes - 1:
                _accept_peer(job, server, peers, connections, deadline)
                if len(peers) == job.num_processes - 1:
                    _drop_silent(peers)
        except TesseraError as error:
            _send_to_all(connections, f"tessera {error.exit_code} {error}", server)
            raise
        _send_to_all(connections, _ALL_THERE)


def _listen(job: Job, deadline: float) -> socket.socket:
    """Returns the socket of process 0; a port in use may still belong to the job's last start."""
    port, has_ipv6 = job.address[1], socket.has_dualstack_ipv6()
    while True:
        try:
            return socket.create_server(
                ("", port),
                family=socket.AF_INET6 if has_ipv6 else socket.AF_INET,
                dualstack_ipv6=has_ipv6,
                backlog=job.num_processes,
            )
        except OSError as error:
            _raise_if_out_of_files(error, job)
            kind = Unavailable if error.errno == errno.EADDRINUSE else SettingsError
            if kind is SettingsError or time.monotonic() > deadline:
                raise kind(
                    f"--coordinator={job.coordinator}: process 0 cannot listen at port {port} "
                    f"({error.strerror}); give a port that is free on its machine"
                ) from None
        # If another process 0 listens there, it refuses this one, and both say why.
        _handshake(job, ("localhost", port), deadline, _ANSWER_SEC)
        time.sleep(_RETRY_SEC)


def _accept_peer(
    job: Job,
    server: socket.socket,
    peers: dict[int, socket.socket],
    connections: list[socket.socket],
    deadline: float,
) -> None:
    """Waits for the next connection and makes it a peer, unless it is not of Tessera.

    Raises:
        Unavailable: nobody has connected until the deadline.
        SettingsError: it does not fit to the others.
    """
    server.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        connections.append(server.accept()[0])
    except TimeoutError:
        _drop_silent(peers)
        raise Unavailable(_missing(job, peers)) from None
    except OSError as error:
        _raise_if_out_of_files(error, job)
        raise
    line = _read_line(connections[-1], time.monotonic() + _ANSWER_SEC)
    hello = re.fullmatch(r"tessera (\d+) (\d+)", line)
    if hello is None:
        connections.pop().close()
        return
    process_id, num_processes = map(int, hello.groups())
    if num_processes != job.num_processes:
        raise SettingsError(
            f"--num-processes={num_processes} of process {process_id} must be "
            f"{job.num_processes}, as in process 0"
        )
    before = {i: peer for i, peer in peers.items() if i == process_id}
    _drop_silent(before)  # it may have been started again
    if process_id == 0 or before:
        raise SettingsError(f"--process-id={process_id} is given to two processes")
    peers[process_id] = connections[-1]


def _drop_silent(peers: dict[int, socket.socket]) -> None:
    """Removes the peers that do not answer: one that has ended has closed its connection."""
    for peer in peers.values():
        _send_line(peer, _STILL_THERE)
    deadline = time.monotonic() + _ANSWER_SEC
    for process_id, peer in list(peers.items()):
        if _read_line(peer, deadline) != _HERE:
            peers.pop(process_id).close()


def _send_to_all(
    connections: list[socket.socket], line: str, server: socket.socket | None = None
) -> None:
    """Sends the outcome to all that have connected, and to those a server has not accepted yet."""
    for peer in connections:
        _send_line(peer, line)
        peer.close()
    if server is not None:
        server.settimeout(0)
        with contextlib.suppress(OSError):  # no more
            while True:
                with server.accept()[0] as peer:
                    _read_line(peer, time.monotonic() + _ANSWER_SEC)  # or its end would be a reset
                    _send_line(peer, line)


def _missing(job: Job, arrived: dict[int, socket.socket]) -> str:
    absent = [str(i) for i in range(1, job.num_processes) if i not in arrived]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return (
        f"process {', '.join(absent[:8])}{more} of {job.num_processes} did not connect to "
        f"--coordinator={job.coordinator} within {job.rendezvous_timeout_sec:g} s: start the same "
        "command in every process, or give a longer --rendezvous-timeout-sec"
    )


def _join(job: Job, deadline: float) -> None:
    """Connects to process 0, retrying until it listens, and returns once all are there."""
    answer_sec = job.rendezvous_timeout_sec + _ANSWER_SEC  # it decides at a deadline of its own
    while not _handshake(job, job.address, deadline, answer_sec):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"process 0 did not answer at --coordinator={job.coordinator} within "
                f"{job.rendezvous_timeout_sec:g} s: start the same command there too, at an "
                "address that every process can reach"
            )
        time.sleep(_RETRY_SEC)


def _handshake(job: Job, address: tuple[str, int], deadline: float, answer_sec: float) -> bool:
    """Returns True once all are there; False if process 0 does not listen or has ended.

    Raises:
        SettingsError, Unavailable: the error that process 0 sends to all.
    """
    limit_sec = max(deadline - time.monotonic(), 0.01)
    try:
        with socket.create_connection(address, timeout=limit_sec) as host:
            _send_line(host, f"tessera {job.process_id} {job.num_processes}")
            while (line := _read_line(host, time.monotonic() + answer_sec)) == _STILL_THERE:
                _send_line(host, _HERE)
    except OSError as error:  # not there yet, or its name is not known yet
        _raise_if_out_of_files(error, job)
        return False
    ending = re.fullmatch(r"tessera (\d+) (.+)", line)
    if ending and int(ending[1]) in _ERRORS:
        raise _ERRORS[int(ending[1])](ending[2])
    return line == _ALL_THERE


def _send_line(peer: socket.socket, line: str) -> None:
    """Sends a line; ignores a peer that is gone."""
    with contextlib.suppress(OSError):
        peer.sendall(f"{line}\n".encode())


def _read_line(peer: socket.socket, deadline: float) -> str:
    """Returns the line that a peer sends, empty if it sends none in time."""
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


def _raise_file_limit(job: Job) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = job.num_processes + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _raise_if_out_of_files(error: OSError, job: Job) -> None:
    needed = job.num_processes + _OWN_FILES
    if error.errno == errno.EMFILE:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise SettingsError(
            f"process {job.process_id} may open no more files: ulimit -n allows {allowed}, and a "
            f"job of {job.num_processes} processes needs about {needed}; allow more on its machine "
            f"(ulimit -Hn {needed}, or nofile in limits.conf)"
        ) from None
    if error.errno == errno.ENFILE:
        raise Unavailable(
            f"the machine of process {job.process_id} has no file handles left (fs.file-max), of "
            f"which a job of {job.num_processes} processes needs about {needed}"
        ) from None
