"""A port that a node or proxy has chosen is nobody else's, and its own to listen on."""

from __future__ import annotations

import socket

import pytest

from tests.node import ports
from tests.node.ports import Ports


def test_a_port_is_held_until_it_is_closed_whether_somebody_listens_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Ports(1)
    (number,) = first.numbers
    monkeypatch.setattr(ports, "_RANGE", range(number, number + 1))
    with pytest.raises(OSError, match=f"fewer than 1 ports are free from {number} to {number}"):
        Ports(1)
    with socket.create_server(("127.0.0.1", number)):
        first.close()
        with pytest.raises(OSError, match="fewer than 1 ports"):
            Ports(1)
    second = Ports(1)
    assert (first.numbers, second.numbers) == ([], [number])
    second.close()
    second.close()


def test_as_many_ports_as_are_wanted_differ() -> None:
    some = Ports(50)
    assert len(set(some.numbers)) == 50
    some.close()
