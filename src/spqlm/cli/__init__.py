"""The command line: one file per command, found by name."""

import logging
import pkgutil
import signal
import sys
from importlib import import_module
from inspect import getdoc
from typing import Any

import typer

from spqlm.checkpoint.manifest import versions
from spqlm.errors import SpqError
from spqlm.names import visible

INTERRUPTED = 130

app = typer.Typer(
    name="spq",
    help="Make causal language models smaller and say what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show a traceback on errors."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens."),
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show versions and exit."
    ),
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)
    for noisy in ("httpx", "urllib3", "filelock", "fsspec", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _register() -> None:
    for module in pkgutil.iter_modules(__path__):
        if module.name not in ("options", "tables"):
            command = import_module(f"{__name__}.{module.name}").command
            # Paragraphs are set anew at the terminal's width; typer keeps the lines of the source.
            paragraphs = (getdoc(command) or "").split("\n\n")
            about = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            app.command(name=module.name, help=about)(command)


def _quiet_transformers() -> None:
    """Our own progress and messages replace the library's."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit: 0 on success, 1 on bad input, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    _quiet_transformers()
    try:
        app(prog_name="spq")
    except SpqError as error:
        if debug:
            raise
        typer.echo(f"spq: error: {visible(str(error))}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        # Typer turns the interrupt of a command into this code, and says nothing.
        if stop.code == INTERRUPTED:
            typer.echo(f"spq: interrupted; {_kept(sys.argv[1:])}", err=True)
        raise


def _kept(arguments: list[str]) -> str:
    """What is left of a command that was interrupted."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command == "compare" or (command == "eval" and "--no-cache" not in arguments):
        return "what was found so far is kept, and the same command goes on from there"
    if command == "compress":
        return "nothing was written, and the same command goes on after what was finished"
    return "nothing was written"


_register()
