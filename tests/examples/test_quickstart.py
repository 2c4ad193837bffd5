"""The quickstart, run as a program."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PROGRAM = _ROOT / "examples" / "quickstart.py"
_TIMEOUT = 30.0


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=make_environment(**environment),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_TIMEOUT,
        check=False,
    )


def run_on_terminal(*arguments: str, **environment: str) -> str:
    """Run it with a terminal for its output and return what it wrote there."""
    ours, theirs = pty.openpty()
    environment = make_environment(**{"TERM": "xterm", **environment})
    with subprocess.Popen(command(*arguments), env=environment, stdout=theirs) as program:
        os.close(theirs)
        written = b""
        try:
            while chunk := os.read(ours, 65_536):
                written += chunk
        except OSError:  # how Linux tells that the other side is closed
            pass
        finally:
            os.close(ours)
        assert program.wait(_TIMEOUT) == 0
    return written.decode()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(_PROGRAM), *arguments]


def make_environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    return {**kept, "PYTHONPATH": str(_ROOT), "PYTHONIOENCODING": "utf-8", **changes}


def check_tour(output: str) -> None:
    assert re.findall(r"^(\d)\. ", output, re.MULTILINE) == ["1", "2", "3", "4", "5", "6"]
    for line in (
        r'   await client\.call\("add", 2, 3\)',
        r"   → 5  in [\d.]+ ms",
        r"   PROGRESS 1/8 cat",
        r"   PROGRESS 8/8 yak",
        r"   → SUCCESS  '8 pictures resized'",
        r"   → Oslo 4 °C, Lima 19 °C, Pune 31 °C, Bonn 12 °C, Kyiv 7 °C",
        r"   → the worker got 'user 7 in'",
        r"   → RemoteError: LookupError: no price for 'moon'",
        r"     │ KeyError: 'moon'",
        r"     │ LookupError: no price for 'moon'",
        r"   → 2,000 right answers in [\d.]+ s: [\d,]+ calls/s",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), line


def test_in_memory_it_shows_every_step() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("aiorpcq on memory://")
    check_tour(done.stdout)
    assert "\x1b" not in done.stdout


def test_on_a_broker_it_shows_the_same_and_no_password(broker_url: str) -> None:
    done = run(broker_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("aiorpcq on amqp://localhost:")
    assert "guest" not in done.stdout
    check_tour(done.stdout)


def test_on_a_terminal_it_has_colours_and_one_moving_bar() -> None:
    output = run_on_terminal()
    assert "\x1b[32m→ 5" in output
    assert re.search(r"\n\r\x1b\[K   PROGRESS .*1/8 cat\r\x1b\[K   PROGRESS .*8/8 yak\r\n", output)


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_turned_off(setting: dict[str, str]) -> None:
    output = run_on_terminal(**setting)
    assert not re.search(r"\x1b\[[\d;]*m", output)
    assert ("\x1b" in output) is ("TERM" not in setting)


def test_help_says_what_it_shows_and_how_to_run_it() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: quickstart.py [-h] [BROKER]" in done.stdout
    assert "quickstart.py amqp://guest:guest@localhost/" in done.stdout
    assert "(default: memory://)" in done.stdout


def test_a_broker_that_is_not_there_is_one_line_and_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run(f"amqp://guest:secret@127.0.0.1:{port}/")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"quickstart: .*127\.0\.0\.1:{port}.*\n", done.stderr)
    assert "secret" not in done.stderr


@pytest.mark.parametrize("url", ["http://localhost/", "localhost", "amqp://localhost:port/"])
def test_a_url_that_cannot_be_read_is_one_line_and_exit_1(url: str) -> None:
    done = run(url)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"quickstart: .+\n", done.stderr)
