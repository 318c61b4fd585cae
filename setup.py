"""The native library and the wheel's tag; everything else about the package is in pyproject.toml.

A compiler that is there has to compile the library: pip hides what a build prints unless it fails,
so nothing else would say that the package became slow. Where there is none the package installs
without, and says so itself when it is used.
"""

import os
import runpy
import shutil
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
FOLDER = Path("src/spqlm/native")
FINGERPRINT = runpy.run_path(str(ROOT / FOLDER / "fingerprint.py"))["fingerprint"](ROOT / FOLDER)
WITHOUT = "SPQ_WITHOUT_NATIVE"
"""Environment variable: 1 leaves the library out, whatever compiler there is."""
REQUIRED = "SPQ_REQUIRE_NATIVE"
"""Environment variable: 1 makes it an error that there is no compiler."""


def files(pattern: str) -> list[str]:
    """Files of the folder, relative to this one, which setuptools insists on."""
    return sorted((FOLDER / file.name).as_posix() for file in (ROOT / FOLDER).glob(pattern))


def on_every_core(compile_files: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The same for many files: they know nothing of each other, so each core compiles its own."""

    def compile_all(sources: list[str], *arguments: Any, **named: Any) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda file: compile_files([file], *arguments, **named), sources)
            return [name for names in found for name in names]

    return compile_all


class BuildLibrary(build_ext):
    """A library that is called through ctypes: no Python module, and named like none."""

    def get_ext_filename(self, fullname: str) -> str:
        """The same for every version of Python."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Compile again whatever was not compiled from these sources; dates may say otherwise."""
        built = Path(self.get_ext_fullpath(ext.name))
        if not built.exists() or FINGERPRINT.encode() not in built.read_bytes():
            self.force = True
        self.compiler.compile = on_every_core(self.compiler.compile)
        try:
            super().build_extension(ext)
        except Exception as error:
            sys.exit(
                f"error: the native kernels did not compile ({error}). They need GCC or Clang with "
                "OpenMP; CXX names another compiler. To install without them, which computes in "
                f"PyTorch and is slower, set {WITHOUT}=1."
            )


class Wheel(bdist_wheel):
    """One wheel for every version of Python, since the library knows none."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-` and the platform, or `any` without the library."""
        return "py3", "none", super().get_tag()[2]


library = Extension(
    "spqlm.native._kernels",
    sources=files("*.cpp"),
    depends=files("*.h"),
    language="c++",
    define_macros=[("SPQ_FINGERPRINT", f'"{FINGERPRINT}"')],
    extra_compile_args=[
        *("-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden"),
        # A value that a switch has forgotten.
        "-Werror=switch",
        # GCC sees numbers that were never set in what its own headers do with vectors. Clang says
        # which loops it made no vectors of. Neither knows what the other is told.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        *("-Wno-pass-failed", "-Wno-unknown-warning-option"),
    ],
    extra_link_args=["-fopenmp"],
)


def extensions() -> list[Extension]:
    """The library, or nothing where it was asked to be left out or there is no compiler."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    # A compiler that was named has to be there.
    found = "CXX" in os.environ or shutil.which(compiler.split()[0]) is not None
    if os.environ.get(WITHOUT) == "1":
        found = False
    elif not found and os.environ.get(REQUIRED) == "1":
        sys.exit(f"error: there is no C++ compiler, and {REQUIRED}=1 asks for the native kernels")
    if not found:
        print("warning: no native kernels are compiled: SPQ will be slow", file=sys.stderr)
    return [library] if found else []


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
