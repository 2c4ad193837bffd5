"""Compiles what is on the path of every call with mypyc: a build hook for hatchling, and a program for a checkout.

A wheel has the compiled modules where a C compiler is at hand, and Python alone where not; the sources are the same. An
editable install is never compiled, since it would not notice an edit. AIORPCQ_COMPILE=0 in the environment asks for
Python alone, for which nothing but hatchling is installed; AIORPCQ_COMPILE=1 takes a failure to compile for an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES: Final = (
    "aiorpcq/deadline.py",
    "aiorpcq/intake.py",
    "aiorpcq/places.py",
    "aiorpcq/protocol/calls.py",
    "aiorpcq/protocol/executions.py",
    "aiorpcq/protocol/messages.py",
    "aiorpcq/protocol/terminals.py",
    "aiorpcq/protocol/timers.py",
    "aiorpcq/protocol/wire.py",
    "aiorpcq/publisher.py",
    "aiorpcq/requests.py",
    "aiorpcq/router/waking.py",
    "aiorpcq/states.py",
    "aiorpcq/transports/amqp/consumer.py",
    "aiorpcq/transports/amqp/frames.py",
    "aiorpcq/transports/amqp/lane.py",
    "aiorpcq/transports/amqp/parser.py",
    "aiorpcq/transports/amqp/properties.py",
)
"""What is compiled: what every call goes through, where it is synchronous and no users' value comes unchecked."""

_GROUP: Final = "aiorpcq"

# What the modules' neighbours import need not be installed where a wheel is built, and is no business of this build.
_MYPY_OPTIONS: Final = ("--config-file=", "--follow-imports=silent", "--ignore-missing-imports")
_ROOT: Final = Path(__file__).parent
_SUFFIXES: Final = {".so", ".pyd"}
_REQUIREMENTS: Final = ("mypy>=2.4", "setuptools>=77")


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what the build needs besides hatchling."""
        return [*_REQUIREMENTS] if _is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, for a wheel that is not editable."""
        if version == "editable" or not _is_wanted():
            return
        self._folder = tempfile.TemporaryDirectory(prefix="aiorpcq-build-")
        folder = Path(self._folder.name)
        try:
            compile_modules(folder)
        except CannotCompile as error:
            if os.environ.get("AIORPCQ_COMPILE") == "1":
                raise
            self.app.display_warning(f"aiorpcq is installed as Python alone, which is slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for built in _compiled(folder):
            build_data["force_include"][str(built)] = str(built.relative_to(folder))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: it is in the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _is_wanted() -> bool:
    """Whether this interpreter is to have compiled modules; one that runs threads side by side would stop doing so."""
    is_cpython = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    return is_cpython and os.environ.get("AIORPCQ_COMPILE") != "0"


class CannotCompile(Exception):
    """mypyc, setuptools or a C compiler is missing, or failed."""


def compile_modules(target: Path) -> list[Path]:
    """Compile `MODULES` into *target*, laid out as the package is; return what was made.

    Raises:
        CannotCompile: with the reason of mypyc or the compiler.
    """
    before = Path.cwd()
    os.chdir(_ROOT)  # module names come from relative paths
    try:
        # None of them is there where Python alone is asked for.
        from mypyc.build import mypycify  # noqa: PLC0415
        from setuptools import Distribution  # noqa: PLC0415
        from setuptools.command.build_ext import build_ext  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="aiorpcq-c-") as scratch:
            options = [*_MYPY_OPTIONS, f"--cache-dir={scratch}/mypy"]
            extensions = mypycify([*options, *MODULES], opt_level="3", target_dir=scratch, group_name=_GROUP)
            command = build_ext(Distribution({"name": "aiorpcq", "ext_modules": extensions}))
            command.build_lib = str(target)
            command.build_temp = scratch
            command.ensure_finalized()
            command.run()
    except SystemExit as error:
        raise CannotCompile("the modules cannot be compiled: mypy found the errors above") from error
    except Exception as error:
        raise CannotCompile(f"the modules cannot be compiled: {error}") from error
    finally:
        os.chdir(before)
    return _compiled(target)


def remove_compiled() -> None:
    """Remove the compiled modules from the checkout."""
    for built in _compiled(_ROOT):
        built.unlink()


def _compiled(folder: Path) -> list[Path]:
    groups = (path for path in folder.glob(f"{_GROUP}__mypyc*") if path.suffix in _SUFFIXES)
    modules = (path for path in (folder / "aiorpcq").rglob("*") if path.suffix in _SUFFIXES)
    return [*groups, *modules]


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python hatch_build.py",
        description="Compile aiorpcq's modules in this checkout, or have it run as Python again.",
        epilog="Compiled modules do not notice an edit of their sources: compile again after one.",
    )
    parser.add_argument("wish", choices=("compiled", "python"), help="what the checkout is to run")
    wish = parser.parse_args().wish
    remove_compiled()
    if wish == "compiled":
        try:
            made = compile_modules(_ROOT)
        except CannotCompile as error:
            print(f"hatch_build.py: {error}", file=sys.stderr)
            return 1
        print(f"compiled {len(made) - 1} modules")
    return 0


if __name__ == "__main__":
    sys.exit(main())
