"""The programs of RabbitMQ and Erlang on this machine, and whether what they started listens, answers or is frozen."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

__all__ = ["NodeError", "epmd_program", "greets", "is_frozen", "listens", "program"]

_FALLBACK_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin", "/usr/local/sbin")
# Debian's programs in /usr/sbin are a wrapper that changes the user and drops the environment; these are what it wraps.
_DEBIAN_WRAPPER = "rabbitmq-script-wrapper"
_DEBIAN_FOLDER = Path("/usr/lib/rabbitmq/bin")


class NodeError(Exception):
    """A node did not do what it was asked; the message carries what it said."""


def program(name: str) -> str:
    """The path of one of RabbitMQ's programs."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_FALLBACK_FOLDERS))
    if found is None:
        raise NodeError(
            f"no {name} on the PATH or in {', '.join(_FALLBACK_FOLDERS)}: scripts/install-rabbitmq installs it"
        )
    wrapped = _DEBIAN_FOLDER / name
    return str(wrapped) if Path(found).resolve().name == _DEBIAN_WRAPPER and wrapped.exists() else found


def epmd_program() -> str:
    """The path of Erlang's port mapper."""
    found = shutil.which("epmd")
    if found is not None:
        return found
    erl = shutil.which("erl", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/opt/homebrew/bin")))
    # Erlang keeps its own beside the emulator: <root>/bin/erl, <root>/erts-<version>/bin/epmd.
    for candidate in Path(erl).resolve().parent.parent.glob("erts-*/bin/epmd") if erl else ():
        return str(candidate)
    raise NodeError("no epmd on the PATH or beside erl: it comes with Erlang")


def is_frozen(pid: int) -> bool:
    """Whether every thread of a process has stopped; told to, each does so when it next leaves the kernel."""
    folder = Path(f"/proc/{pid}/task")
    if not folder.exists():
        return True  # not Linux
    try:
        states = [(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in folder.iterdir()]
    except OSError:  # a thread that has ended meanwhile
        return False
    return set(states) <= {"T", "t"}


def listens(port: int) -> bool:
    """Whether somebody takes connections on *port* of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def greets(port: int) -> bool:
    """Whether an AMQP broker answers a protocol header with its first frame, of type method (1)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
