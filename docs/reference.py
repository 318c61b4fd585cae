"""Writes docs/reference/ from the code: `python docs/reference.py`.

The command line from typer's commands, recipes from the stages' fields, formats from their
descriptions, what other programs hold from the targets, the Python API from docstrings. A test
holds the committed pages to what this writes.
"""

import inspect
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
import typer

import spqlm
from spqlm import formats
from spqlm.cli import app
from spqlm.report.recipe_reference import recipe_reference
from spqlm.report.target_reference import target_reference

FOLDER = Path(__file__).parent / "reference"
SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
EXAMPLE = "\nExample:\n"
# Fields that have no default, for the example of a weight in each format.
EXAMPLES: dict[str, dict[str, Any]] = {
    "group_sparse": {"kept": 4096 * 128},
    "low_rank": {"rank": 512},
}
SHAPE = 4096, 4096


def pages() -> dict[Path, str]:
    """Text by file."""
    written = {
        "cli.md": command_line(),
        "recipes.md": recipe_reference(),
        "formats.md": stored_formats(),
        "targets.md": target_reference(),
        "python.md": python_api(),
    }
    return {FOLDER / name: text.strip() + "\n" for name, text in written.items()}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown; nothing where there are no rows."""
    if not rows:
        return ""
    cells = [tuple(" ".join(cell.split()).replace("|", r"\|") for cell in row) for row in rows]
    lines = [header, ("---",) * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# --- the command line ----------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        "`spq COMMAND --help` prints the same. Exit codes: 0 for success, 1 for bad input (one "
        "sentence says what is wrong),\n2 for a command that cannot be parsed, 130 when "
        "interrupted. These options come before the command:",
        _options(group),
    ]
    for name in group.commands:
        parts.append(_command(name, group.commands[name]))
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = [p.metavar + (" ..." if p.nargs == -1 else "") for p in arguments]
    rows = [(f"`{p.metavar}`", p.help or "") for p in arguments]
    examples = "\n".join(line.strip() for line in command.epilog.splitlines()[1:])
    parts = [
        f"## spq {name}",
        f"```text\nspq {' '.join([name, *shown])}\n```",
        command.help,
        f"```text\n{examples}\n```",
        table(("argument", "meaning"), rows),
        _options(command),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _options(command: Any) -> str:
    options = [p for p in command.params if p.param_type_name == "option"]
    rows = [
        (", ".join(f"`{name}`" for name in p.opts + p.secondary_opts), _default(p), p.help or "")
        for p in options
    ]
    return table(("option", "default", "meaning"), rows)


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.required:
        return "must be given"
    if option.is_flag:
        return f"`{option.opts[0]}`" if option.default else "off"
    return "" if option.default in (None, "") else f"`{option.default}`"


# --- formats -------------------------------------------------------------------------------------


def stored_formats() -> str:
    """Every format: its fields, and what a weight in it consists of."""
    parts = [
        "# Formats",
        "How a weight may be stored: an entry of the menu of the stage `budget`, and of a "
        "checkpoint's `config.json`\n([what else is there](../format.md)). Sizes are those of a "
        f"weight of {SHAPE[0]} × {SHAPE[1]} in a bfloat16 model.",
    ]
    for name in formats.available():
        kind = formats.format_class(name)
        fields = kind.model_json_schema()
        required = fields.get("required", [])
        rows = []
        for key, field in fields.get("properties", {}).items():
            default = "must be given" if key in required else f"`{field.get('default')}`"
            rows.append((f"`{key}`", default, _allowed(field), field.get("description", "")))
        file = inspect.getdoc(inspect.getmodule(kind))
        header = ("field", "default", "allowed", "meaning")
        parts += [f"## {name}", markdown(file or ""), table(header, rows), _stored(name, kind)]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _allowed(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "multipleOf": "a multiple of"}
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return ", ".join(bounds) or field.get("type", "")


def _stored(name: str, kind: type[formats.Format]) -> str:
    given = kind.model_validate(EXAMPLES.get(name, {}))
    with torch.device("meta"):
        tensors = given.empty(*SHAPE, torch.bfloat16).tensors()
    rows = [
        (f"`{key}`", str(value.dtype).removeprefix("torch."), " × ".join(map(str, value.shape)))
        for key, value in tensors.items()
    ]
    size = given.stored_bytes(*SHAPE, 2)
    bits = 8 * size / (SHAPE[0] * SHAPE[1])
    example = ", ".join(f"{key} {value}" for key, value in EXAMPLES.get(name, {}).items())
    about = (
        f"{'With ' + example + ': ' if example else ''}{size:,} bytes, {bits:.2f} bits a weight."
    )
    return f"{table(('tensor', 'dtype', 'shape'), rows)}\n{about}"


# --- the Python API ------------------------------------------------------------------------------


def python_api() -> str:
    """Every name of `spqlm.__all__`."""
    parts = ["# Python API", markdown(inspect.getdoc(spqlm) or "")]
    for name in spqlm.__all__:
        thing: Any = getattr(spqlm, name)
        parts += [f"## spqlm.{name}", _described(name, thing)]
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                found: Any = getattr(thing, method)
                if not method.startswith("_") and inspect.isroutine(found) and value.__doc__:
                    parts += [f"### {name}.{method}", _described(method, found)]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _described(name: str, thing: Any) -> str:
    about = markdown(inspect.getdoc(thing) or "")
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return about
    return f"```python\n{signature(name, thing)}\n```\n\n{about}"


def signature(name: str, thing: Any) -> str:
    """As it would be called; one parameter a line where one line is too long."""
    found = inspect.signature(thing, eval_str=True)
    shown = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(str(parameter))
    empty = inspect.isclass(thing) or found.return_annotation is found.empty
    end = "" if empty else " -> " + inspect.formatannotation(found.return_annotation)
    line = f"{name}({', '.join(shown)}){end}"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){end}"
    # Where a type is defined is of no interest, except for what is called the same elsewhere.
    return re.sub(r"(?<!')\b(?!torch\.)(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", line)


def markdown(docstring: str) -> str:
    """A docstring in Google's style; its sections become lists, the example that ends it code."""
    text, _, code = docstring.partition(EXAMPLE)
    blocks = [_block(block) for block in text.strip().split("\n\n")]
    if code:
        blocks.append(f"**Example:**\n\n```python\n{dedent(code).strip()}\n```")
    return "\n\n".join(blocks)


def example(thing: Any) -> str:
    """The code under `Example:` in a docstring."""
    _, _, code = (inspect.getdoc(thing) or "").partition(EXAMPLE)
    return dedent(code)


def _block(block: str) -> str:
    head, _, rest = block.partition("\n")
    if head not in SECTIONS:
        return block
    items = re.split(r"\n(?=\S)", dedent(rest))
    lines = [re.sub(r"^(\w+): ", r"`\1`: ", " ".join(item.split())) for item in items]
    return f"**{head}**\n\n" + "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
