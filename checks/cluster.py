"""A Ray cluster of several nodes on this machine, whose nodes can be killed as a power cut would do it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_RAY = str(Path(sys.executable).with_name("ray"))

# A node that is gone refuses connections and is missed within seconds; by default it takes Ray up to half a minute. One
# that is slow to answer, where much else shares the machine, is not gone.
_WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "20000",
    "RAY_health_check_failure_threshold": "4",
    # Ray's workers give way to all else by default, and would never end beside it.
    "RAY_worker_niceness": "0",
}


class Cluster:
    """Nodes of so many cores each; the first one is the head, without which there is no cluster.

    Attributes:
        address: of the head, as drivers on this machine give it.
        client: the same for drivers elsewhere.
        nodes: the leader of each node's session of processes.
    """

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores
        self.nodes: list[int] = []
        # Short: the paths of sockets are in it.
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        head, client = _free_ports(2)
        self.address, self.client = f"127.0.0.1:{head}", f"ray://127.0.0.1:{client}"
        self._head = ["--head", f"--port={head}", f"--ray-client-server-port={client}", f"--temp-dir={self._folder}"]
        self._head += ["--include-dashboard=false", "--disable-usage-stats"]

    def __enter__(self) -> Self:
        try:
            self._start(self._head, self._cores[0])
            self._wait_for_head()
            for cores in self._cores[1:]:
                self.add(cores)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in reversed(range(len(self.nodes))):
            self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, cores: int) -> None:
        """Starts a node, and does not wait until it is there."""
        self._start([f"--address={self.address}"], cores)

    def kill(self, number: int) -> None:
        """Ends all processes of a node at once."""
        leader = self.nodes.pop(number)
        # Some may just be starting others.
        while running := list(processes_of(leader)):
            for process in running:
                _kill(process)
            time.sleep(0.05)
        os.waitpid(leader, 0)

    def _start(self, arguments: Sequence[str], cores: int) -> None:
        settings = ["--block", f"--num-cpus={cores}", "--num-gpus=0", "--object-store-memory=80000000"]
        command = [_RAY, "start", *arguments, *settings]
        # Where much else shares the machine a node may not be up within Ray's half a minute; it is started again then.
        command = ["sh", "-c", 'until "$@"; do sleep 1; done', "node", *command]
        with Path(self._folder, f"node-{len(self.nodes)}-{time.monotonic_ns()}.log").open("w") as log:
            node = subprocess.Popen(
                command, env=os.environ | _WATCHFUL, stdout=log, stderr=log, start_new_session=True, close_fds=True
            )
        node.returncode = 0  # whoever kills it waits for it
        self.nodes.append(node.pid)

    def _wait_for_head(self) -> None:
        """It answers before it is a node of its own cluster, and sends drivers away until then."""
        for _ in range(100):
            told = subprocess.run([_RAY, "status", f"--address={self.address}"], capture_output=True, text=True)
            if "node_" in told.stdout:
                return
            time.sleep(0.1)
        raise TimeoutError("the head of the cluster did not start")


def processes_of(session: int) -> Iterator[int]:
    """The processes of a session that are alive."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            yield int(entry.name)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
