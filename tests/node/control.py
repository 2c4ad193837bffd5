"""What an operator does to a broker while it runs: virtual hosts, users, alarms, connections, channels, queues."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .programs import NodeError

__all__ = ["ConnectionInfo", "Control", "QueueInfo", "binary"]

_CONTROL_SECONDS = 60.0
_ALARM_SECONDS = 30.0

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


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """What the broker says of one queue: *messages* are those that wait and those that are *unacknowledged*.

    A quorum queue tells what it held some seconds ago, and only its leader does.
    """

    name: str
    messages: int
    consumers: int
    unacknowledged: int


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What the broker says of one client connection: the client's *name* for it, and the client's *port*."""

    name: str
    vhost: str
    user: str
    port: int
    channels: int


class Control:
    """The broker that evaluates Erlang on the Unix socket at *path*. All methods block, for some milliseconds.

    Each raises `NodeError` where the broker does not run or refuses.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._socket = path

    @property
    def control_server(self) -> str:
        """Erlang for the broker to evaluate at its start."""
        return " ".join(_CONTROL_SERVER.replace("SOCKET", json.dumps(str(self._socket))).split())

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
        self.eval(f"ok = rabbit_vhost:add({binary(vhost)}, <<>>)")
        self.set_permissions(user, vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Remove a virtual host with all that is in it; the broker closes its connections."""
        self.eval(f"rabbit_vhost:delete({binary(vhost)}, <<>>)")

    def add_user(self, user: str, password: str) -> None:
        """Make a user, who may do nothing until `set_permissions`."""
        self.eval(f"ok = rabbit_auth_backend_internal:add_user({binary(user)}, {binary(password)}, <<>>)")

    def set_permissions(
        self, user: str, vhost: str = "/", *, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Allow *user* what the three regular expressions match."""
        values = ", ".join(map(binary, (user, vhost, configure, write, read)))
        self.eval(f"ok = rabbit_auth_backend_internal:set_permissions({values}, <<>>)")

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the broker's memory alarm, which blocks every connection that publishes."""
        self.eval(f"ok = vm_memory_monitor:set_vm_memory_high_watermark({'0.000001' if on else '0.6'})")
        deadline = time.monotonic() + _ALARM_SECONDS
        while (self.eval("rabbit_alarm:get_alarms()") != "[]") is not on:
            if time.monotonic() > deadline:
                raise NodeError(f"the memory alarm of {self.name} did not become {on}")
            time.sleep(0.01)

    def queues(self, vhost: str = "/") -> dict[str, QueueInfo]:
        """The queues of a virtual host by name, as the broker counts them now."""
        lines = self.eval(
            "unicode:characters_to_binary([begin {_, {resource, _, queue, Name}} = lists:keyfind(name, 1, Info), "
            'io_lib:format("~ts\\t~w\\t~w\\t~w\\n", [Name, proplists:get_value(messages, Info, 0), '
            "proplists:get_value(consumers, Info, 0), proplists:get_value(messages_unacknowledged, Info, 0)]) end "
            f"|| Info <- rabbit_amqqueue:info_all({binary(vhost)}, "
            "[name, messages, consumers, messages_unacknowledged])])"
        )
        rows = (line.split("\t") for line in lines.splitlines())
        return {name: QueueInfo(name, *map(_count, counts)) for name, *counts in rows}

    def sync_metadata(self) -> None:
        """Have what is declared on disk before a kill.

        RabbitMQ 3.10.8 does not see to that each time: of a durable queue that it had just declared and filled nothing
        was left after a kill, once. From 4.3 on there is no Mnesia, and nothing to do.
        """
        self.eval("ok = case whereis(mnesia_controller) of undefined -> ok; _ -> mnesia:sync_log() end")

    def delete_queue(self, name: str, vhost: str = "/") -> None:
        """Delete a queue, used or not, with what is in it; its consumers are cancelled."""
        resource = f"rabbit_misc:r({binary(vhost)}, queue, {binary(name)})"
        self.eval(
            f"{{ok, Queue}} = rabbit_amqqueue:lookup({resource}), "
            f"{{ok, _}} = rabbit_amqqueue:delete(Queue, false, false, {binary('tests')})"
        )

    def delete_exchange(self, name: str, vhost: str = "/") -> None:
        """Delete an exchange with its bindings; who publishes to it has its channel closed with 404."""
        resource = f"rabbit_misc:r({binary(vhost)}, exchange, {binary(name)})"
        self.eval(f"ok = rabbit_exchange:delete({resource}, false, {binary('tests')})")

    def connections(self, vhost: str | None = None) -> list[ConnectionInfo]:
        """The client connections that are open, in one virtual host or in all."""
        lines = self.eval(
            "unicode:characters_to_binary([case catch rabbit_networking:connection_info("
            "P, [client_properties, vhost, user, peer_port, channels]) of "
            "[{_, Properties}, {_, Host}, {_, User}, {_, Port}, {_, Channels}] when is_binary(Host) -> "
            f'io_lib:format("~ts\\t~ts\\t~ts\\t~w\\t~w\\n", [{_NAME_OF_CONNECTION}, Host, User, Port, Channels]); '
            "_ -> [] end || P <- rabbit_networking:connections()])"
        )
        infos = [
            ConnectionInfo(name, host, user, int(port), _count(channels))
            for name, host, user, port, channels in (line.split("\t") for line in lines.splitlines())
        ]
        return [info for info in infos if vhost is None or info.vhost == vhost]

    def connection_count(self, vhost: str | None = None) -> int:
        """How many client connections are open, in one virtual host or in all."""
        hosts = self.eval(
            "unicode:characters_to_binary([case catch rabbit_networking:connection_info(P, [vhost]) of "
            "[{vhost, Host}] when is_binary(Host) -> [Host, 10]; _ -> [] end || P <- rabbit_networking:connections()])"
        ).splitlines()
        return len(hosts) if vhost is None else hosts.count(vhost)

    def close_connections(
        self, reason: str = "closed by a test", *, name: str | None = None, vhost: str | None = None
    ) -> int:
        """Close client connections as an operator would, with 320 CONNECTION_FORCED; return how many.

        All, or those that their client calls *name* and that use *vhost*. It is no error where one ends by
        itself meanwhile.
        """
        close = f"try rabbit_networking:close_connection(P, {binary(reason)}) of _ -> true catch exit:_ -> false end"
        return int(
            self.eval(f"length([P || P <- rabbit_networking:connections(), {_is_chosen('P', name, vhost)}, {close}])")
        )

    def close_channels(
        self, code: Literal[404, 406], *, number: int | None = 1, name: str | None = None, vhost: str | None = None
    ) -> int:
        """Have the broker close channel *number* of the connections that *name* and *vhost* choose; return how many.

        With None it is the channels that consume from a queue.

        As if the client had made the mistake that *code* stands for: 404 NOT_FOUND, 406 PRECONDITION_FAILED. Only
        connections to this node are looked at.
        """
        # Records of AMQP 0-9-1 methods, as rabbit_framing has them: a passive declaration, and an unknown delivery tag.
        mistake = {
            404: f"{{'queue.declare', 0, {binary('no such queue')}, true, false, false, false, false, []}}",
            406: "{'basic.ack', 4294967295, false}",
        }[code]
        key, value = ("consumer_count", "Consumers") if number is None else ("number", number)
        return int(
            self.eval(
                f"length([gen_server2:cast(Channel, {{method, {mistake}, none, noflow}}) "
                "|| Channel <- rabbit_channel:list_local(), "
                f"[{{{key}, {value}}}, {{connection, P}}] <- "
                f"[catch rabbit_channel:info(Channel, [{key}, connection])], "
                f"{'true' if number else 'Consumers > 0'}, {_is_chosen('P', name, vhost)}])"
            )
        )

    def set_consumer_timeout(self, seconds: float | None) -> None:
        """Give consumers that settle nothing so long; None is RabbitMQ's half hour. It is for channels opened later.

        Up to 4.2 a channel is closed with 406, whenever the broker looks: once a minute, and at
        `enforce_consumer_timeout`. From 4.3 on it is a quorum queue that counts, cancels the consumer, and looks by
        itself; a classic queue has no such timeout.
        """
        milliseconds = 1_800_000 if seconds is None else round(seconds * 1000)
        self.eval(f"application:set_env(rabbit, consumer_timeout, {milliseconds})")

    def enforce_consumer_timeout(self) -> None:
        """Have every channel of this node look now whether its consumers' time is up."""
        self.eval("[Channel ! tick || Channel <- rabbit_channel:list_local()]")

    def resume_processes(self) -> None:
        """Have every process of the broker go on that a test has suspended."""
        self.eval(
            "[erlang:resume_process(P) || P <- erlang:processes(), "
            "{status, suspended} =:= erlang:process_info(P, status)]"
        )


def channels_of(port: int, consumers: int | None = None) -> str:
    """A list comprehension in Erlang: the channels of the client on *port*, all or those with so many consumers."""
    return (
        "[Channel || Channel <- rabbit_channel:list_local(), "
        "[{consumer_count, Count}, {connection, P}] <- "
        "[catch rabbit_channel:info(Channel, [consumer_count, connection])], "
        f"{'true' if consumers is None else f'Count =:= {consumers}'}, "
        f"[{{peer_port, {port}}}] =:= (catch rabbit_networking:connection_info(P, [peer_port]))]"
    )


def binary(text: str) -> str:
    """An Erlang binary, whatever the text holds."""
    return f"<<{','.join(map(str, text.encode()))}>>"


_NAME_OF_CONNECTION = (
    f"case lists:keyfind({binary('connection_name')}, 1, Properties) of {{_, _, Name}} -> Name; _ -> [] end"
)


def _is_chosen(connection: str, name: str | None, vhost: str | None) -> str:
    """A filter for a list comprehension in Erlang: whether the connection is the one that is meant."""
    conditions = []
    if vhost is not None:
        conditions.append(
            f"[{{vhost, {binary(vhost)}}}] =:= (catch rabbit_networking:connection_info({connection}, [vhost]))"
        )
    if name is not None:
        # A connection that ends meanwhile answers with no list.
        properties = f"(catch rabbit_networking:connection_info({connection}, [client_properties]))"
        entry = f"{{{binary('connection_name')}, longstr, {binary(name)}}}"
        conditions.append(
            f"case {properties} of [{{_, List}}] when is_list(List) -> lists:member({entry}, List); _ -> false end"
        )
    return " andalso ".join(f"({condition})" for condition in conditions) or "true"


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the broker closed the control socket")
        data += chunk
    return data


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0  # a queue that is going away answers with ''
