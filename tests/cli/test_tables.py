from spqlm.cli.tables import WHOLE_NAME, show, table


def printed(capsys, names):
    made = table("sizes", "method", *(f"task_{index} perplexity" for index in range(9)))
    for name in names:
        made.add_row(name, *["41140084.43 ± 35487145.83"] * 9)
    show(made)
    return capsys.readouterr().out.split("\n")


def test_a_name_is_whole_where_numbers_have_to_break(capsys):
    names = ["ensemble-no-recover", "int8"]
    lines = printed(capsys, names)
    assert all(len(line) <= 120 for line in lines)
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert any("35487145" in line and "41140084" not in line for line in lines)


def test_a_name_too_long_for_its_line_is_broken_like_the_rest(capsys):
    lines = printed(capsys, ["model." * WHOLE_NAME])
    assert all(len(line) <= 120 for line in lines)
    assert sum("mod" in line for line in lines) > 1


def test_a_name_is_not_taken_for_markup(capsys):
    hostile = "[/b] [red]x :smile: \x1b[31m"
    made = table(hostile, hostile, hostile)
    made.add_row(hostile, hostile)
    show(made, hostile)
    out = capsys.readouterr().out
    assert out.count("[/b] [red]x :smile: \\x1b[31m") == 6 and "\x1b" not in out
