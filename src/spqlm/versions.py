"""Versions of the packages that decide a result, read without importing them."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """By name: Python, this package, PyTorch, transformers and safetensors."""
    packages = ("spqlm", "torch", "transformers", "safetensors")
    return {"python": platform.python_version()} | {name: version_of(name) for name in packages}


def version_of(package: str) -> str:
    """What is installed of a package on PyPI, or a sentence that says that nothing is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
