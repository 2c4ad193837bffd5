"""Node: the process of a private RabbitMQ, from its folder to its end.

The node has its own name, data folder, Erlang cookie, epmd and ports, and reads no configuration of the machine, so
a broker that happens to run is neither seen nor touched. The programs come from the PATH, or from where package
managers put them. All methods block; an async test that must go on meanwhile calls them in a thread::

    await asyncio.to_thread(node.restart)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from .configuration import make_certificates, make_environment, write_files
from .control import Control
from .ports import Ports
from .programs import NodeError, epmd_program, greets, is_frozen, listens, program

__all__ = ["Node"]

_BOOT_SECONDS = 90.0
_STOP_SECONDS = 30.0
_CONTROL_SECONDS = 60.0

# The guard outlives us if we are killed: when its standard input ends, it kills what it was last told and removes the
# folder. It is also how `close` removes the folder, so there is one way to end.
_GUARD = """
trap '' HUP INT TERM
while read -r line; do pids=$line; done
for pid in $pids; do kill -s KILL -- "$pid" 2>/dev/null; done
tries=0
until rm -rf -- "$1" 2>/dev/null || [ "$tries" -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"""


class Node(Control):
    """One private RabbitMQ node.

    `start` and `stop` may follow each other any number of times: ports, name and data stay. `close`, or the end of a
    `with` block, ends the node and removes everything; so does the end of this process, whatever ends it.

    Args:
        tls: also listen for TLS, with a certificate for localhost and 127.0.0.1; `ca_file` is its authority.
        config: further lines of rabbitmq.conf.
        peer: the node whose cookie and epmd this one shares, so that they can be of one cluster; it is closed last.
    """

    def __init__(self, *, tls: bool = False, config: Mapping[str, str] | None = None, peer: Node | None = None) -> None:
        self._server_program = program("rabbitmq-server")
        self._control_program = program("rabbitmqctl")
        self._epmd_program = epmd_program()
        # Short, because a Unix socket's path is at most 104 bytes on macOS; in /tmp, because that is the folder that a
        # server in a chroot most likely shares with us.
        self.folder = Path(tempfile.mkdtemp(prefix="aiorpcq-", dir="/tmp"))
        super().__init__(f"{self.folder.name}@localhost", self.folder / "control")
        self._ports = Ports(4)
        self.port, self.tls_port, distribution_port, own_epmd_port = self._ports.numbers
        self.ca_file: Path | None = None
        self._peer = peer
        self._cookie: str = secrets.token_hex(16) if peer is None else peer._cookie
        self._epmd_port: int = own_epmd_port if peer is None else peer._epmd_port
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_lock = threading.Lock()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        settings = dict(config or {})
        if tls:
            listener, self.ca_file = make_certificates(self.folder, self.tls_port)
            settings = listener | settings
        write_files(self.folder, self.port, self._cookie, settings)
        self._environment = make_environment(self.folder, self.name, distribution_port, self._epmd_port)

    # --- life

    def start(self) -> None:
        """Start the broker, and return when it is fully booted.

        Raises:
            NodeError: it ended, or did not boot within 90 seconds; the message ends with the tail of its log.
        """
        if self.running:
            raise NodeError(f"{self.name} runs already")
        self._start_epmd()
        self._socket.unlink(missing_ok=True)
        with (self.folder / "console.log").open("ab") as console:
            self._server = subprocess.Popen(
                [self._server_program, "-noinput", "-eval", self.control_server],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._tell_guard()
        try:
            self._wait_for_boot(time.monotonic() + _BOOT_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut the broker down as its operator would. Durable queues and persistent messages survive."""
        if self._server is None:
            return
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGCONT)
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the broker (SIGKILL): no goodbye to anyone, as in a power failure."""
        if self._server is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._server = None
        self._tell_guard()

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP): connections stand and say nothing. `resume`, `stop` or `kill` ends it.

        On Linux it is frozen when this returns; elsewhere it soon is.

        Raises:
            NodeError: it went on for 30 seconds.
        """
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while not is_frozen(self.pid):
            if time.monotonic() > deadline:
                raise NodeError(f"{self.name} did not freeze")
            time.sleep(0.001)

    def resume(self) -> None:
        """Let a frozen broker go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the node and remove its folder. Nothing is left of it; a second call does nothing."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._tell_guard()
            self._guard.stdin.close()
        self._guard.wait()
        self._ports.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        if self._server is None:
            raise NodeError(f"{self.name} does not run")
        return self._server.pid

    # --- talking to it

    def url(
        self,
        user: str = "guest",
        password: str = "guest",
        vhost: str = "/",
        *,
        tls: bool = False,
        port: int | None = None,
    ) -> str:
        """The URL of a virtual host; *port* where something between listens, such as a proxy."""
        scheme, own_port = ("amqps", self.tls_port) if tls else ("amqp", self.port)
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"{scheme}://{credentials}@localhost:{port or own_port}/{quote(vhost, safe='')}"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node and return what it prints. It is slow, see `eval`."""
        done = subprocess.run(
            [self._control_program, "--quiet", *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONTROL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise NodeError(f"rabbitmqctl {arguments[0]} failed ({done.returncode}): {done.stderr or done.stdout}")
        return done.stdout

    def stop_app(self) -> None:
        """Stop the broker in its process, as `rabbitmqctl stop_app` does: every connection ends, the ports refuse."""
        self.eval("ok = rabbit:stop()")

    def start_app(self) -> None:
        """Start the broker in its process again, and return when it takes connections.

        Raises:
            NodeError: it does not within 90 seconds.
        """
        self.eval("ok = rabbit:start()")
        self._wait_for_boot(time.monotonic() + _BOOT_SECONDS)

    def reset(self) -> None:
        """Make the broker as it was when new: no connection, queue, alarm or timeout, only `/` and guest."""
        self.set_memory_alarm(False)
        self.set_consumer_timeout(None)
        self.close_connections()
        self.eval(
            "[rabbit_vhost:delete(V, <<>>) || V <- rabbit_vhost:list_names()], "
            "Users = [proplists:get_value(user, U) || U <- rabbit_auth_backend_internal:list_users()], "
            '[rabbit_auth_backend_internal:delete_user(U, <<>>) || U <- Users -- [list_to_binary("guest")]]'
        )
        self.add_vhost("/")

    def log_tail(self, lines: int = 40) -> str:
        """The end of what the broker logged and printed."""
        return "\n".join(
            f"--- {name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for name in ("console.log", "node.log")
            if (path := self.folder / name).exists()
        )

    def _start_epmd(self) -> None:
        if self._peer is not None:
            self._peer._start_epmd()
            return
        with self._epmd_lock:  # the members of a cluster may start at once
            if self._epmd is None or self._epmd.poll() is not None:
                self._launch_epmd()

    def _launch_epmd(self) -> None:
        self._epmd = subprocess.Popen(
            [self._epmd_program, "-address", "127.0.0.1", "-port", str(self._epmd_port)],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._tell_guard()
        deadline = time.monotonic() + _STOP_SECONDS
        # Were it not listening yet, the node would start an epmd that nobody ends.
        while not listens(self._epmd_port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"{self._epmd_program} does not listen")
            time.sleep(0.01)

    def _tell_guard(self) -> None:
        assert self._guard.stdin is not None
        processes = [process.pid for process in (self._server, self._epmd) if process is not None]
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(" ".join(f"-{pid}" for pid in processes).encode() + b"\n")
            self._guard.stdin.flush()

    def _wait_for_boot(self, deadline: float) -> None:
        booted = "rabbit:is_running() andalso rabbit_networking:active_listeners() =/= []"
        while True:
            assert self._server is not None
            if self._server.poll() is not None:
                raise NodeError(f"{self.name} ended with {self._server.returncode}\n{self.log_tail()}")
            with contextlib.suppress(NodeError):
                if self.eval(booted) == "true" and greets(self.port):
                    return
            if time.monotonic() > deadline:
                raise NodeError(f"{self.name} did not boot within {_BOOT_SECONDS:g} s\n{self.log_tail()}")
            time.sleep(0.05)
