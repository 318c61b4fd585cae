"""The command line: one file per command, found by name.

At the top of a command's file stands what its help needs, and that must not load PyTorch or
transformers. What the command itself needs is imported inside its function, so that help, versions
and shell completion come at once.
"""

import logging
import pkgutil
import signal
import sys
from importlib import import_module
from inspect import getdoc
from typing import Any

import typer

from spqlm.cli.failures import sentence
from spqlm.cli.terminal import StandardError, quiet_transformers, survive_ascii
from spqlm.cli.threads import bound_spinning
from spqlm.names import visible
from spqlm.versions import versions

INTERRUPTED = 130
# Panels of `spq --help`, in this order. A command's GROUP is one of them.
GROUPS = ("Compress", "Measure", "Use", "Look")

app = typer.Typer(
    name="spq",
    help="Make causal language models smaller, and measure what is lost.",
    epilog="Start with: spq compress demo out",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log each step."),
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show versions and exit."
    ),
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(name)s: %(message)s", handlers=[StandardError()], force=True
    )
    logging.getLogger("spqlm.progress").setLevel(min(level, logging.INFO))
    for noisy in ("httpx", "urllib3", "filelock", "fsspec", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _register() -> None:
    found = [
        import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    ]
    commands = [module for module in found if hasattr(module, "command")]
    for module in sorted(commands, key=lambda module: GROUPS.index(module.GROUP)):
        # Paragraphs are set anew at the terminal's width; typer keeps the lines of the source.
        paragraphs = (getdoc(module.command) or "").split("\n\n")
        app.command(
            name=module.__name__.rpartition(".")[2],
            help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
            epilog="\n".join(["Examples:", *(f"  {example}" for example in module.EXAMPLES)]),
            rich_help_panel=module.GROUP,
        )(module.command)


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit: 0 on success, 1 on an error, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    survive_ascii()
    bound_spinning()
    quiet_transformers()
    try:
        app(prog_name="spq")
    except Exception as error:
        if debug:
            raise
        print(f"spq: {visible(sentence(error, _command()))}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        # Typer turns the interrupt of a command into this code, and says nothing.
        if stop.code == INTERRUPTED:
            print(f"spq: interrupted; {_kept(_command())}", file=sys.stderr)
        raise


def _command() -> str:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


def _kept(command: str) -> str:
    """What is left of a command that was interrupted."""
    if command == "compare" or (command == "eval" and "--no-cache" not in sys.argv):
        return "the results so far are kept; run the same command to continue"
    if command == "compress":
        return "nothing was written; run the same command to continue after what is finished"
    return "nothing was written"


_register()
