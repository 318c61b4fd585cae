"""`spq families`."""

import json


def test_what_families_can_do_is_listed_with_why_not_the_rest(run):
    code, out, err = run("families", "llama", "phi3")
    assert (code, err) == (0, "")
    assert "verified" not in out
    assert "phi3: queries, keys and values are rows of one projection" in out


def test_a_type_without_a_file_is_looked_at_too(run):
    code, out, _ = run("families", "olmo", "--json")
    [row] = json.loads(out)
    assert code == 0 and row["cells"][:4] == ["yes", "yes", "no", "no"]
    assert "nothing states which of its rows and columns belong together" in row["remarks"]


def test_the_page_is_markdown(run):
    code, out, _ = run("families", "opt", "--markdown", "--verify")
    assert code == 0 and "| `opt` | yes |" in out


def test_a_type_that_transformers_has_not_is_refused(run):
    code, out, err = run("families", "nonsense")
    assert (code, out) == (1, "")
    assert "no model type 'nonsense'; did you mean" in err
