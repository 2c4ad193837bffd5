"""What is compiled, and what a wheel has of it."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aiorpcq.testing
from aiorpcq.compiled import COMPILED
from hatch_build import MODULES, CannotCompile, compile_modules

_ROOT = Path(__file__).parent.parent
_WISH = os.environ.get("AIORPCQ_COMPILE")

needs_compiler = pytest.mark.skipif(_WISH != "1", reason="AIORPCQ_COMPILE=1 was not asked for")


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_what_users_import_is_not_compiled() -> None:
    # A compiled class takes no subclass, and checks by its annotations before it checks by its own rules.
    public = [getattr(module, name) for module in (aiorpcq, aiorpcq.testing) for name in module.__all__]
    compiled = {module_name(path) for path in MODULES}
    assert [value for value in public if getattr(value, "__module__", None) in compiled] == []


@pytest.mark.parametrize("path", MODULES)
def test_what_is_compiled_has_no_coroutine(path: str) -> None:
    # One that mypyc has compiled leaves the exception that it handles to whatever runs while it waits (mypy 2.4).
    tree = ast.parse((_ROOT / path).read_text())
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)] == []


def test_the_modules_are_compiled_together_or_not_at_all() -> None:
    if _WISH is not None:
        assert (_WISH == "1") == COMPILED
    for path in MODULES:
        assert str(importlib.import_module(module_name(path)).__file__).endswith(".py") != COMPILED


def build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel with the tools that are installed here."""
    command = [sys.executable, "-m", "pip", "--verbose", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    return subprocess.run(
        [*command, "--wheel-dir", str(target), str(_ROOT)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def checkout() -> dict[Path, int]:
    """What is in the checkout and since when, without the caches of tools that run beside this."""
    paths = [*_ROOT.glob("*"), *(_ROOT / "aiorpcq").rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file() and "__pycache__" not in path.parts}


def compiled_in(target: Path) -> set[str]:
    """The modules of the only wheel in *target* that are compiled."""
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {path for path in MODULES if path in names} == set(MODULES)  # the sources are there in any case
    return {name.partition(".")[0] + ".py" for name in names if name.endswith((".so", ".pyd")) and "/" in name}


def test_a_wheel_of_python_alone_is_for_every_machine(tmp_path: Path) -> None:
    done = build(tmp_path, AIORPCQ_COMPILE="0")
    assert done.returncode == 0, done.stderr
    assert compiled_in(tmp_path) == set()
    assert [wheel.name.endswith("-py3-none-any.whl") for wheel in tmp_path.iterdir()] == [True]


@needs_compiler
def test_a_wheel_has_the_compiled_modules_and_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    before = checkout()
    done = build(tmp_path, AIORPCQ_COMPILE="1")
    assert done.returncode == 0, done.stderr
    assert compiled_in(tmp_path) == set(MODULES)
    assert checkout() == before


def test_without_a_compiler_a_wheel_is_python_alone_and_says_so(tmp_path: Path) -> None:
    done = build(tmp_path, AIORPCQ_COMPILE="", CC=str(tmp_path / "no-compiler"))
    assert done.returncode == 0, done.stderr
    assert compiled_in(tmp_path) == set()
    assert "installed as Python alone, which is slower: the modules cannot be compiled" in done.stdout + done.stderr


def test_a_failure_to_compile_names_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    with pytest.raises(CannotCompile, match="no-compiler"):
        compile_modules(tmp_path)
    assert list(tmp_path.rglob("*.so")) == []
