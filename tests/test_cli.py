"""The command line: what it prints, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

import pytest

from aiorpcq import Codecs
from aiorpcq.__main__ import _shown, main
from aiorpcq.compiled import COMPILED
from aiorpcq.protocol.deadletters import bury
from aiorpcq.protocol.messages import Outcome, Properties, Publication
from aiorpcq.protocol.topology import Names
from aiorpcq.testing import MemoryBroker, memory_broker
from aiorpcq.transports.registry import make_transport

NOON = 1_700_000_000.0


@pytest.fixture
def broker() -> MemoryBroker:
    """A broker that lives from one event loop to the next: each command has one of its own."""
    return memory_broker(uuid4().hex)


@pytest.fixture
def url(broker: MemoryBroker) -> str:
    return f"memory://{broker.name}"


def letter(letter_id: str, *arguments: Any, method: str = "add", reason: str = "5 runs were lost") -> Publication:
    body, content_type, _ = Codecs().encode([list(arguments), {"b": 3}])
    properties = Properties(
        content_type, headers={"metadata": {"user": 7}}, correlation_id=f"task-{letter_id}", type=method
    )
    return bury(
        properties,
        body,
        Names().dead_queue("math").name,
        letter_id=letter_id,
        reason=reason,
        attempt=5,
        losses=5,
        worker_id="w1",
        now=NOON,
    )


def put(url: str, *letters: Publication, with_service: bool = True) -> None:
    """Publish *letters* as a worker would."""

    async def publish() -> None:
        names = Names()
        link = await make_transport(url, max_size=2**20, name="test").connect(10)
        await link.declare(names.requests, names.dead_queue("math"))
        if with_service:
            await link.declare(names.service_queue("math"), names.binding("math"))
        for publication in letters:
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            publication.settled = lambda _, settled, outcome=outcome: outcome.set_result(settled)
            link.publish(publication)
            assert await outcome is Outcome.CONFIRMED
        await link.close()

    asyncio.run(publish())


def run(url: str, *arguments: str) -> int:
    action, *rest = arguments
    return main(["dead", action, "--url", url, "--service", "math", *rest])


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    try:
        expected = version("aiorpcq")
    except PackageNotFoundError:
        expected = "(not installed, its version is unknown)"
    assert capsys.readouterr().out == f"aiorpcq {expected}, {'compiled' if COMPILED else 'Python alone'}\n"


@pytest.mark.parametrize("arguments", [[], ["dead"], ["dead", "list"], ["dead", "replay"]])
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    assert "usage: python -m aiorpcq" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dead"],
        ["unknown"],
        ["dead", "show"],
        ["dead", "replay"],
        ["dead", "list", "--limit", "x"],
        ["dead", "list", "--limit", "0", "--url", "memory://"],
        ["dead", "list", "--service", "a b", "--url", "memory://"],
        ["dead", "list", "--url", "http://user:s3cret@localhost"],
        ["dead", "replay", "a", "--timeout", "-1", "--url", "memory://"],
    ],
)
def test_wrong_use_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "error:" in told
    assert "s3cret" not in told


def test_letters_are_listed_in_a_table(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", 2), letter("b", 2, method="subtract", reason="x" * 100))
    assert run(url, "list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "ID  BURIED (UTC)         METHOD    RUNS  LOST  BYTES  REASON",
        "a   2023-11-14 22:13:20  add       5     5     7      5 runs were lost",
        "b   2023-11-14 22:13:20  subtract  5     5     7      " + "x" * 59 + "…",
    ]


def test_no_letters_are_told_in_words(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "list") == 0
    assert capsys.readouterr().out == "service math has no dead letters\n"


def test_letters_are_listed_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    put(url, letter("a", 2), letter("b", 2))
    assert run(url, "list", "--json", "--limit", "1") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "id": "a",
            "task_id": "task-a",
            "method": "add",
            "reason": "5 runs were lost",
            "attempts": 5,
            "losses": 5,
            "worker_id": "w1",
            "buried_at": NOON,
            "size": 7,
            "broker_reason": None,
            "metadata": {"user": 7},
            "reply_to": None,
        }
    ]


def test_a_letter_is_shown_with_its_arguments(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", 2))
    assert run(url, "show", "a") == 0
    shown = capsys.readouterr().out
    assert "method         add\n" in shown
    assert "buried at      2023-11-14 22:13:20\n" in shown
    assert "arguments      (2, b=3)\n" in shown


def test_a_letter_is_shown_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", b"\xff", {1: (2,)}))
    assert run(url, "show", "a", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["buried_at"]) == ("a", NOON)
    assert shown["arguments"] == {"args": ["b'\\xff'", {"1": [2]}], "kwargs": {"b": 3}}


def test_arguments_that_cannot_be_read_are_no_reason_to_show_nothing(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publication = letter("a", 2)
    publication.properties.content_type = "application/x-unknown"
    put(url, publication)
    assert run(url, "show", "a") == 0
    assert "cannot be shown: content type 'application/x-unknown' is not accepted" in capsys.readouterr().out
    assert run(url, "show", "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["args"] is None


def test_what_a_terminal_would_obey_is_escaped(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", "\x1b[2J", reason="\x1b]0;owned\x07"))
    assert run(url, "list") == 0
    assert run(url, "show", "a") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07" in shown


def test_many_arguments_are_cut(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", "x" * 50_000))
    assert run(url, "show", "a") == 0
    assert "characters more)" in capsys.readouterr().out
    assert run(url, "show", "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["args"] == ["x" * 50_000]


def test_letters_are_replayed(url: str, broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", 2), letter("b", 2), letter("c", 2))
    assert run(url, "replay", "a", "c", "--timeout", "60") == 0
    assert capsys.readouterr().out == "replayed a\nreplayed c\n"
    assert (broker.queue_depth("rpc.math"), broker.queue_depth("rpc.math.dead")) == (2, 1)


def test_letters_are_discarded(url: str, broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", 2), letter("b", 2))
    assert run(url, "discard", "b", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"id": "b", "done": "discarded"}
    assert (broker.queue_depth("rpc.math"), broker.queue_depth("rpc.math.dead")) == (0, 1)


@pytest.mark.parametrize("action", ["show", "replay", "discard"])
def test_a_letter_that_is_not_there_is_told(action: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, action, "a") == 1
    assert "UnknownTask: service 'math' has no dead letter 'a'" in capsys.readouterr().err


def test_a_letter_of_a_service_that_is_gone_stays(
    url: str, broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    put(url, letter("a", 2), with_service=False)
    assert run(url, "replay", "a") == 1
    assert "Unroutable: no queue is bound for service 'math'" in capsys.readouterr().err
    assert broker.queue_depth("rpc.math.dead") == 1


def test_a_broker_that_is_not_there_is_told_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("amqp://user:s3cret@localhost:1/", "list") == 3
    told = capsys.readouterr().err
    assert "ConnectFailed: amqp://localhost:1/" in told
    assert "s3cret" not in told


def test_the_environment_names_the_broker(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(url, letter("a", 2))
    monkeypatch.setenv("AIORPCQ_URL", url)
    assert main(["dead", "list", "--service", "math"]) == 0
    assert "5 runs were lost" in capsys.readouterr().out


def test_it_is_a_program_of_its_own(broker_url: str) -> None:
    put(broker_url, letter("a", 2, reason="broken – för gut"))
    command = [sys.executable, "-m", "aiorpcq", "dead", "list", "--service", "math", "--url", broker_url]
    done = subprocess.run(
        command, capture_output=True, check=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout.decode("ascii").splitlines()[1].startswith("a   2023-11-14 22:13:20  add")
    assert done.stderr == b""
    done = subprocess.run([*command[:4], "replay", *command[5:], "a"], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"replayed a\n"


def test_what_json_cannot_hold_is_shown_as_text(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(url, letter("a", 10**5000, float("nan"), float("-inf"), {1: "b", "1": "c"}))
    assert run(url, "show", "a", "--json") == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown["arguments"]["args"] == [hex(10**5000), "nan", "-inf", [["1", "b"], ["1", "c"]]]
    assert run(url, "show", "a") == 0
    assert "too long to be shown" in capsys.readouterr().out


def test_what_is_nested_too_deep_for_python_is_said_to_be() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert _shown(nested) == "a list nested too deep to be shown"
