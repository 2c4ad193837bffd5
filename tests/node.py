"""A RabbitMQ node of the tests' own: private, on loopback only, and gone without a trace afterwards.

The node has its own name, data folder, Erlang cookie, epmd and ports, and reads no configuration of the machine, so
a broker that happens to run is neither seen nor touched. The programs come from the PATH, or from where package
managers put them. All methods block; an async test that must go on meanwhile calls them in a thread::

    await asyncio.to_thread(node.restart)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

__all__ = ["Node", "NodeError", "QueueInfo"]

_FALLBACK_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin", "/usr/local/sbin")
# Debian's programs in /usr/sbin are a wrapper that changes the user and drops the environment; these are what it wraps.
_DEBIAN_WRAPPER = "rabbitmq-script-wrapper"
_DEBIAN_FOLDER = Path("/usr/lib/rabbitmq/bin")

# Below the ephemeral range of Linux (32768) and macOS (49152), so that no outgoing connection takes the port of a node
# that is stopped and will start again. RabbitMQ's own ports (5672, 15672, 25672) are outside too.
_PORTS = range(26_000, 32_000)

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

# Evaluates Erlang expressions that come on a Unix socket in the node's folder, which only its user can enter. An
# answer takes about a millisecond, a run of rabbitmqctl some hundred.
_CONTROL_SERVER = """
spawn(fun() ->
  {ok, L} = gen_tcp:listen(0, [{ifaddr, {local, SOCKET}}, binary, {packet, 4}, {active, false}]),
  Text = fun(V) when is_binary(V) -> V; (V) -> unicode:characters_to_binary(io_lib:format("~tp", [V])) end,
  Evaluate = fun(Code) ->
    try
      {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Code)),
      {ok, Expressions} = erl_parse:parse_exprs(Tokens),
      {value, Value, _} = erl_eval:exprs(Expressions, []),
      [$+, Text(Value)]
    catch Class:Reason -> [$-, Text({Class, Reason})]
    end
  end,
  Serve = fun Serve() ->
    {ok, S} = gen_tcp:accept(L),
    case gen_tcp:recv(S, 0) of {ok, Code} -> gen_tcp:send(S, Evaluate(Code)); _ -> ok end,
    gen_tcp:close(S),
    Serve()
  end,
  Serve()
end).
"""


class NodeError(Exception):
    """A node did not do what it was asked; the message carries what it said."""


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """What the broker says of one queue."""

    name: str
    messages: int
    consumers: int


class Node:
    """One private RabbitMQ node.

    `start` and `stop` may follow each other any number of times: ports, name and data stay. `close`, or the end of a
    `with` block, ends the node and removes everything; so does the end of this process, whatever ends it.

    Args:
        tls: also listen for TLS, with a certificate for localhost and 127.0.0.1; `ca_file` is its authority.
        config: further lines of rabbitmq.conf.
    """

    def __init__(self, *, tls: bool = False, config: Mapping[str, str] | None = None) -> None:
        self._server_program = _program("rabbitmq-server")
        self._control_program = _program("rabbitmqctl")
        self._epmd_program = _epmd_program()
        # Short, because a Unix socket's path is at most 104 bytes on macOS; in /tmp, because that is the folder that a
        # server in a chroot most likely shares with us.
        self.folder = Path(tempfile.mkdtemp(prefix="aiorpcq-", dir="/tmp"))
        self.name = f"{self.folder.name}@localhost"
        self.port, self.tls_port, distribution_port, epmd_port = _free_ports(4)
        self.ca_file: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._write_files(tls=tls, config=config or {})
        self._environment = self._make_environment(distribution_port, epmd_port)

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
        control_server = _CONTROL_SERVER.replace("SOCKET", json.dumps(str(self._socket)))
        with (self.folder / "console.log").open("ab") as console:
            self._server = subprocess.Popen(
                [self._server_program, "-noinput", "-eval", " ".join(control_server.split())],
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
        while not _is_frozen(self.pid):
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

    def eval(self, expressions: str) -> str:
        """Evaluate Erlang in the broker and return the value's text; in about a millisecond, unlike `ctl`.

        Raises:
            NodeError: the broker does not run, or the expressions failed.
        """
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_CONTROL_SECONDS)
                connection.connect(str(self._socket))
                code = f"{expressions}.".encode()
                connection.sendall(len(code).to_bytes(4, "big") + code)
                size = int.from_bytes(_read(connection, 4), "big")
                answer = _read(connection, size).decode()
        except OSError as error:
            raise NodeError(f"{self.name} does not answer: {error}") from error
        if not answer.startswith("+"):
            raise NodeError(f"{expressions}: {answer[1:]}")
        return answer[1:]

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version, such as (3, 10, 8)."""
        text = self.eval("{_, _, V} = lists:keyfind(rabbit, 1, application:loaded_applications()), list_to_binary(V)")
        return tuple(int(part) for part in text.split("+")[0].split("-")[0].split("."))

    def add_vhost(self, vhost: str, *, user: str = "guest") -> None:
        """Make a virtual host in which *user* may do everything."""
        self.eval(f"ok = rabbit_vhost:add({_binary(vhost)}, <<>>)")
        self.set_permissions(user, vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Remove a virtual host with all that is in it; the broker closes its connections."""
        self.eval(f"rabbit_vhost:delete({_binary(vhost)}, <<>>)")

    def add_user(self, user: str, password: str) -> None:
        """Make a user, who may do nothing until `set_permissions`."""
        self.eval(f"ok = rabbit_auth_backend_internal:add_user({_binary(user)}, {_binary(password)}, <<>>)")

    def set_permissions(
        self, user: str, vhost: str = "/", *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Allow *user* what the three regular expressions match."""
        values = ", ".join(map(_binary, (user, vhost, configure, write, read)))
        self.eval(f"ok = rabbit_auth_backend_internal:set_permissions({values}, <<>>)")

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the broker's memory alarm, which blocks every connection that publishes."""
        self.eval(f"ok = vm_memory_monitor:set_vm_memory_high_watermark({'0.000001' if on else '0.6'})")
        deadline = time.monotonic() + _STOP_SECONDS
        while (self.eval("rabbit_alarm:get_alarms()") != "[]") is not on:
            if time.monotonic() > deadline:
                raise NodeError(f"the memory alarm of {self.name} did not become {on}")
            time.sleep(0.01)

    def queues(self, vhost: str = "/") -> dict[str, QueueInfo]:
        """The queues of a virtual host by name, as the broker counts them now."""
        lines = self.eval(
            "unicode:characters_to_binary([begin {_, {resource, _, queue, Name}} = lists:keyfind(name, 1, Info), "
            'io_lib:format("~ts\\t~w\\t~w\\n", [Name, proplists:get_value(messages, Info, 0), '
            "proplists:get_value(consumers, Info, 0)]) end "
            f"|| Info <- rabbit_amqqueue:info_all({_binary(vhost)}, [name, messages, consumers])])"
        )
        rows = (line.split("\t") for line in lines.splitlines())
        return {name: QueueInfo(name, _count(messages), _count(consumers)) for name, messages, consumers in rows}

    def connection_count(self, vhost: str | None = None) -> int:
        """How many client connections are open, in one virtual host or in all."""
        hosts = self.eval(
            "unicode:characters_to_binary([case catch rabbit_networking:connection_info(P, [vhost]) of "
            "[{vhost, Host}] when is_binary(Host) -> [Host, 10]; _ -> [] end || P <- rabbit_networking:connections()])"
        ).splitlines()
        return len(hosts) if vhost is None else hosts.count(vhost)

    def close_connections(self, reason: str = "closed by a test", *, name: str | None = None) -> None:
        """Close client connections as an operator would, with 320 CONNECTION_FORCED: all, or those called *name*."""
        chosen = "true"
        if name is not None:
            properties = "element(2, hd(rabbit_networking:connection_info(P, [client_properties])))"
            chosen = f"lists:member({{{_binary('connection_name')}, longstr, {_binary(name)}}}, {properties})"
        close = f"rabbit_networking:close_connection(P, {_binary(reason)})"
        self.eval(f"[{close} || P <- rabbit_networking:connections(), {chosen}]")

    def reset(self) -> None:
        """Make the broker as it was when new: no connection, queue or alarm, only `/` and guest."""
        self.set_memory_alarm(False)
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

    # --- setting it up

    @property
    def _socket(self) -> Path:
        return self.folder / "control"

    def _write_files(self, *, tls: bool, config: Mapping[str, str]) -> None:
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "log.console": "false",
            "log.file.level": "info",
            "disk_free_limit.absolute": "10MB",  # a small disk must not look like a fault
            "vm_memory_high_watermark.relative": "0.6",
        }
        if tls:
            settings |= self._make_certificates()
        text = "".join(f"{key} = {value}\n" for key, value in (settings | dict(config)).items())
        (self.folder / "rabbitmq.conf").write_text(text)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "environment").write_text("")
        (self.folder / "config.d").mkdir()
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    def _make_certificates(self) -> dict[str, str]:
        import trustme  # noqa: PLC0415 - only the TLS tests need it, the benchmarks do not have it

        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self.ca_file = self.folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(str(self.folder / "certificate.pem"), append=True)
        return {
            "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
            "ssl_options.cacertfile": str(self.ca_file),
            "ssl_options.certfile": str(self.folder / "certificate.pem"),
            "ssl_options.keyfile": str(self.folder / "key.pem"),
            "ssl_options.verify": "verify_none",
            "ssl_options.fail_if_no_peer_cert": "false",
        }

    def _make_environment(self, distribution_port: int, epmd_port: int) -> dict[str, str]:
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET", "COOKIE"))
        }
        folder = str(self.folder)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return own | {
            "HOME": folder,  # where Erlang looks for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "false",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/config.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": f"{folder}/node.log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            # Any free port: the default is a range of eleven, which suites side by side would share.
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            # The script becomes the broker instead of its parent, so its process id is the broker's.
            "RABBITMQ_ALLOW_INPUT": "1",
        }

    def _start_epmd(self) -> None:
        if self._epmd is not None and self._epmd.poll() is None:
            return
        self._epmd = subprocess.Popen(
            [self._epmd_program, "-address", "127.0.0.1", "-port", self._environment["ERL_EPMD_PORT"]],
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
        while not _listens(int(self._environment["ERL_EPMD_PORT"])):
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
                if self.eval(booted) == "true" and _greets(self.port):
                    return
            if time.monotonic() > deadline:
                raise NodeError(f"{self.name} did not boot within {_BOOT_SECONDS:g} s\n{self.log_tail()}")
            time.sleep(0.05)


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_FALLBACK_FOLDERS))
    if found is None:
        raise NodeError(
            f"no {name} on the PATH or in {', '.join(_FALLBACK_FOLDERS)}: scripts/install-rabbitmq installs it"
        )
    wrapped = _DEBIAN_FOLDER / name
    return str(wrapped) if Path(found).resolve().name == _DEBIAN_WRAPPER and wrapped.exists() else found


def _epmd_program() -> str:
    found = shutil.which("epmd")
    if found is not None:
        return found
    erl = shutil.which("erl", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/opt/homebrew/bin")))
    # Erlang keeps its own beside the emulator: <root>/bin/erl, <root>/erts-<version>/bin/epmd.
    for candidate in Path(erl).resolve().parent.parent.glob("erts-*/bin/epmd") if erl else ():
        return str(candidate)
    raise NodeError("no epmd on the PATH or beside erl: it comes with Erlang")


def _is_frozen(pid: int) -> bool:
    """Whether every thread of a process has stopped; told to, each does so when it next leaves the kernel."""
    folder = Path(f"/proc/{pid}/task")
    if not folder.exists():
        return True  # not Linux
    try:
        states = [(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in folder.iterdir()]
    except OSError:  # a thread that has ended meanwhile
        return False
    return set(states) <= {"T", "t"}


def _free_ports(count: int) -> list[int]:
    def candidates() -> Iterator[int]:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                yield port

    ports = candidates()
    return [next(ports) for _ in range(count)]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _greets(port: int) -> bool:
    """Whether an AMQP broker answers a protocol header with its first frame, of type method (1)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the broker closed the control socket")
        data += chunk
    return data


def _binary(text: str) -> str:
    """An Erlang binary, whatever the text holds."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0  # a queue that is going away answers with ''
