"""The documentation is true: its programs run and print what it says, its links lead somewhere, no name is missing.

A ```python block is a program. One of these comments on the last line before it says how it is run:

- `<!-- continues -->`: behind the program before it, as one program;
- `<!-- serves -->`: it is started, and the next program is run beside it; then it gets SIGTERM and has to end in order;
- `<!-- pytest -->`: by pytest.

Where the next block is ```text, that is what the program prints; `...` in it stands for anything. `amqp://localhost`
in a program becomes the URL of the suite's RabbitMQ. Blocks in other languages are not run.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import aiorpcq

_ROOT = Path(__file__).parent.parent
_GUARANTEES = _ROOT / "docs" / "guarantees.md"
_README = _ROOT / "README.md"
_TUTORIAL = _ROOT / "docs" / "tutorial.md"
_PAGES = [*sorted((_ROOT / "docs").glob("*.md")), *filter(Path.exists, [_README])]

_BROKER = "amqp://localhost"
_SERVES = "serves"
_TIMEOUT = 60.0

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (continues|serves|pytest) -->\n+\Z")
_LINK = re.compile(r"\]\((?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a page, at *line*; *beside* is the one that serves meanwhile."""

    page: str
    line: int
    text: str
    mark: str = ""
    output: str | None = None
    beside: Program | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def programs(page: str, text: str) -> list[Program]:
    """Return the programs of a page that are run, in order."""
    found: list[Program] = []
    serving: Program | None = None
    blocks = list(_FENCE.finditer(text))
    for number, block in enumerate(blocks):
        if block["language"] != "python":
            continue
        marked = _MARK.search(text[: block.start()])
        mark = marked[1] if marked else ""
        line = text.count("\n", 0, block.start()) + 2
        source = "\n" * (line - 1) + block["text"]  # so that a traceback names the page's own lines
        if mark == "continues":
            before = found[-1]
            source = before.text + source[len(before.text.splitlines()) :]
        following = blocks[number + 1] if number + 1 < len(blocks) else None
        output = following["text"] if following is not None and following["language"] == "text" else None
        program = Program(page, line, source, mark, output, serving)
        if mark == _SERVES:
            serving = program
        else:
            found.append(program)
            serving = None
    return found


_PROGRAMS = [
    program
    for page in (_TUTORIAL, _README, _GUARANTEES)
    if page.exists()
    for program in programs(page.name, page.read_text())
]


@pytest.mark.parametrize("program", _PROGRAMS, ids=str)
def test_a_program_runs_and_prints_what_the_page_says(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    needs_broker = any(_BROKER in part.text for part in (program, program.beside) if part is not None)
    url: str = request.getfixturevalue("broker_url") if needs_broker else _BROKER
    if program.beside is None:
        output = _run(program, tmp_path, url)
    else:
        with _start(program.beside, tmp_path, url) as serving:
            try:
                assert serving.stderr is not None
                assert any(_SERVES in line for line in serving.stderr), f"{program.beside} ended without serving"
                output = _run(program, tmp_path, url)
                serving.send_signal(signal.SIGTERM)
                assert serving.wait(_TIMEOUT) == 0
            finally:
                serving.kill()
    if program.output is not None:
        _compare(program.output, output)


def _run(program: Program, folder: Path, url: str) -> str:
    done = subprocess.run(
        _command(program, folder, url),
        env=_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def _start(program: Program, folder: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(program, folder, url), env=_environment(), cwd=folder, stderr=subprocess.PIPE, text=True
    )


def _command(program: Program, folder: Path, url: str) -> list[str]:
    path = folder / f"test_{program.line}.py"
    path.write_text(program.text.replace(_BROKER, url))
    if program.mark == "pytest":
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    return [sys.executable, "-W", "error", str(path)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONIOENCODING": "utf-8"}


def _compare(expected: str, output: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, output, flags):
        pytest.fail(checker.output_difference(doctest.Example("", expected), output, flags))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.finditer(_FENCE.sub("", page.read_text())):
        target, anchor = link["target"], link["anchor"]
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text())):
            broken.append(link.group())
    assert broken == []


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (_ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in _PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


def test_every_public_name_is_mentioned() -> None:
    mentioned = set(re.findall(r"\w+", "\n".join(page.read_text() for page in _PAGES)))
    assert sorted(set(aiorpcq.__all__) - mentioned) == []


_FILES = re.compile(r"`((?:aiorpcq|tests|examples)/[\w/]+(?:\.py|/))`")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = set(_FILES.findall(page.read_text()))
    assert sorted(name for name in named if not (_ROOT / name).exists()) == []


_PAGE = """\
```python
a = 1
```

<!-- continues -->

```python
print(a)
```

prints

```text
1
```

```sh
ls
```

<!-- serves -->

```python
serve()
```

```python
call()
```
"""


def test_programs_are_found_with_their_marks_and_outputs() -> None:
    first, second, third = programs("page", _PAGE)
    assert (first.line, first.text.strip(), first.output) == (2, "a = 1", None)
    assert (second.line, second.text.split(), second.output) == (8, ["a", "=", "1", "print(a)"], "1\n")
    assert (third.text.strip(), third.beside is not None and third.beside.text.strip()) == ("call()", "serve()")


def test_a_continued_program_keeps_the_lines_of_its_page() -> None:
    continued = programs("page", _PAGE)[1]
    assert continued.text.splitlines()[continued.line - 1] == "print(a)"
