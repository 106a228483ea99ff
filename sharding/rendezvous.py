"""All processes of a job meet before JAX connects them, so that one that stays away is named.

JAX's own coordination service ends a process by a signal when another does not come.
"""

import contextlib
import re
import socket
import time

from configs.errors import SettingsError
from sharding.job import Job

_GO_ON = "go on"
_RETRY_SEC = 0.2


def meet(job: Job) -> None:
    """Returns once every process of a job is there, all of them within a moment.

    Process 0 listens at the coordinator's address, which is free again afterwards.

    Raises:
        SettingsError: one has not come within the limit, or two do not fit together; every process
            that has come says the same.
    """
    deadline = time.monotonic() + job.start_limit_sec
    verdict = (_receive if job.process_id == 0 else _arrive)(job, deadline)
    if verdict != _GO_ON:
        raise SettingsError(verdict)


def _receive(job: Job, deadline: float) -> str:
    """Waits for the others as process 0, and tells them the verdict that it returns."""
    port = job.address[1]
    with contextlib.ExitStack() as open_sockets:
        try:
            server = open_sockets.enter_context(_listen(port, job.num_processes))
        except OSError as error:
            raise SettingsError(
                f"--coordinator={job.coordinator}: process 0 cannot listen at port {port} "
                f"({error.strerror}); give a port that is free on its machine"
            ) from None
        arrived: dict[int, socket.socket] = {}
        verdict = _GO_ON
        while verdict == _GO_ON and len(arrived) < job.num_processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                guest = open_sockets.enter_context(server.accept()[0])
            except TimeoutError:
                verdict = _missing(job, arrived)
                break
            greeting = re.fullmatch(r"tessera (\d+) (\d+)", _read_line(guest, time.monotonic() + 2))
            if greeting is None:
                continue  # a stranger
            process_id, num_processes = map(int, greeting.groups())
            if num_processes != job.num_processes:
                verdict = (
                    f"--num-processes={num_processes} of process {process_id} must be "
                    f"{job.num_processes}, as in process 0"
                )
            elif process_id in (0, *arrived):
                verdict = f"--process-id={process_id} is given to two processes"
            arrived[process_id] = guest
        for guest in arrived.values():
            with contextlib.suppress(OSError):
                guest.sendall(f"{verdict}\n".encode())
        return verdict


def _listen(port: int, num_processes: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=num_processes
        )
    return socket.create_server(("", port), backlog=num_processes)


def _missing(job: Job, arrived: dict[int, socket.socket]) -> str:
    absent = [str(i) for i in range(1, job.num_processes) if i not in arrived]
    more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
    return (
        f"process {', '.join(absent[:8])}{more} of {job.num_processes} did not come to "
        f"--coordinator={job.coordinator} within {job.start_limit_sec:g} s: start the same command "
        "in every process, or give a longer --start-limit-sec"
    )


def _arrive(job: Job, deadline: float) -> str:
    """Goes to process 0 and returns what it says; tries again until it is there."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(
                job.address, timeout=max(deadline - time.monotonic(), 0.01)
            ) as host:
                host.sendall(f"tessera {job.process_id} {job.num_processes}\n".encode())
                verdict = _read_line(host, deadline + 5)  # it decides at its own deadline
            if verdict:
                return verdict
        except OSError:  # not there yet, or its name is not known yet
            pass
        time.sleep(_RETRY_SEC)
    return (
        f"process 0 did not come to --coordinator={job.coordinator} within "
        f"{job.start_limit_sec:g} s: start the same command there too, at an address that every "
        "process can reach"
    )


def _read_line(peer: socket.socket, deadline: float) -> str:
    """Returns the line that a peer sends, nothing where it sends none."""
    text = b""
    while not text.endswith(b"\n"):
        peer.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            part = peer.recv(4096)
        except OSError:
            return ""
        if not part:
            return ""
        text += part
    return text.decode(errors="replace").strip()
