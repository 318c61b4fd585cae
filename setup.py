"""The native library; everything else about the package is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
FOLDER = Path("src/spqlm/native")
FINGERPRINT = runpy.run_path(str(ROOT / FOLDER / "fingerprint.py"))["fingerprint"](ROOT / FOLDER)


def files(pattern: str) -> list[str]:
    """Files of the folder, relative to this one, which setuptools insists on."""
    return sorted((FOLDER / file.name).as_posix() for file in (ROOT / FOLDER).glob(pattern))


class BuildLibrary(build_ext):
    """Compiles again whatever was not compiled from these sources; dates may say otherwise."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        built = Path(self.get_ext_fullpath(ext.name))
        if not built.exists() or FINGERPRINT.encode() not in built.read_bytes():
            self.force = True
        super().build_extension(ext)


# Called through ctypes: it has no Python module in it, so one build serves every PyTorch.
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
    ],
    extra_link_args=["-fopenmp"],
    # Without a compiler the package installs all the same, and computes in PyTorch.
    optional=True,
)

setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary})
