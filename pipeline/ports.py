"""Loopback ports: which are free, and who has those that are not."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack

import psutil

from pipeline.errors import ServerError

HOST = "127.0.0.1"


def free_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Check that each port can be listened on, and choose one for each 0."""
    chosen: dict[str, int] = {}
    with ExitStack() as held:
        for name, port in wanted.items():
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
                # Binding alone succeeds beside a listener on all addresses on some systems.
                taken = port != 0 and _accepts(port)
            except OSError:
                taken = True
            if taken:
                option = f"--{name}-port"
                raise ServerError(
                    f"port {port} on {HOST} is taken by {_owner_of(port)}; end it, or choose another port "
                    f"with {option} (0: any free one)"
                )
            chosen[name] = listener.getsockname()[1]
    return chosen


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    return free_ports({"prefect": 0})["prefect"]


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def _owner_of(port: int) -> str:
    """The process that listens on `port`, in words, as far as this system tells."""
    try:
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if local and local.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:200]
                return f"process {connection.pid} ({command})"
    except psutil.Error:
        pass  # macOS tells root only, and a process may end meanwhile: say how to find out instead.
    return f"another program (to see which: lsof -i :{port})"
