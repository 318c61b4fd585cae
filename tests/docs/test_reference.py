from pathlib import Path

from docs.reference import FOLDER, markdown, pages, signature

from spqlm import __all__, formats
from spqlm.cli import app


def test_the_committed_pages_are_what_the_code_says_now():
    for file, text in pages().items():
        assert file.read_text(encoding="utf-8") == text, f"run `make docs`: {file.name}"


def test_no_other_page_is_there():
    assert set(FOLDER.iterdir()) == set(pages())


def test_every_command_format_and_public_name_has_its_section():
    written = {file.name: text.splitlines() for file, text in pages().items()}
    for command in app.registered_commands:
        assert f"## spq {command.name}" in written["cli.md"]
    for name in formats.available():
        assert f"## {name}" in written["formats.md"]
    for name in __all__:
        assert f"## spqlm.{name}" in written["python.md"]


def test_the_sections_of_a_docstring_become_lists():
    arguments = "Args:\n    x: [n],\n        a vector.\n    y: a number."
    assert markdown(f"What it does.\n\n{arguments}\n\nReturns:\n    both.") == (
        "What it does.\n\n**Args:**\n\n- `x`: [n], a vector.\n- `y`: a number.\n\n"
        "**Returns:**\n\n- both."
    )


def test_the_example_that_ends_a_docstring_becomes_code():
    written = markdown("What it does.\n\nExample:\n    import a\n\n    a.b()")
    assert written == "What it does.\n\n**Example:**\n\n```python\nimport a\n\na.b()\n```"


def test_a_signature_is_one_line_where_it_fits():
    def short(x: int, *, y: str = "a.b") -> bool: ...

    def long(the_first_of_many_arguments: int, the_second_of_them: str, *, third: Path) -> None: ...

    assert signature("short", short) == "short(x: int, *, y: str = 'a.b') -> bool"
    assert signature("long", long).splitlines() == [
        "long(",
        "    the_first_of_many_arguments: int,",
        "    the_second_of_them: str,",
        "    *,",
        "    third: Path,",
        ") -> None",
    ]
