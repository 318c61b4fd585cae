import json

from benchmarks.tables import RESULTS, ROOT, documents
from benchmarks.tables.headline import CALIBRATION, LARGER_MODEL, OURS, PEER, headline
from tests.cli.test_bench import FOUND

from spqlm.comparison.cells import Cell, Comparison

KERNELS = {
    "processor": "a processor",
    "torch": "2",
    "kernels": "avx2",
    "threads": 2,
    "read_bandwidth": 38e9,
    "results": [
        {
            "shape": "8x4",
            "rows": 16,
            "dtype": "bfloat16",
            "way": "int8",
            "milliseconds": 1.234,
            "gigabytes_per_second": 30.0,
            "ratio_to_dense": 1.5,
        }
    ],
}
MACHINE = {"cpu": "a processor", "threads": 2, "torch": "2", "python": "3"}
SPARSITY = {
    "dense": {"wikitext2": 0.0, "c4": 1.0},
    "rows": [
        {
            "name": "2:4",
            "calibration": "text",
            "bits": 2.5,
            "wikitext2": 0.25,
            "c4": 0.5,
            "seconds": 9.6,
            "machine": MACHINE,
        }
    ],
}
CELL = Cell(
    method="gptq", target=90, status="skipped", reason="too small", recipe={}, seed=0, key=""
)


def test_the_committed_pages_are_what_the_command_writes():
    for file, text in documents().items():
        assert file.read_text(encoding="utf-8") == text, f"run `make results`: {file.name}"


def test_what_was_not_measured_is_left_out(tmp_path):
    (page,) = documents(tmp_path, ROOT).values()
    assert page.startswith("# Results") and "\n## " not in page


def test_every_stored_file_has_its_section(tmp_path):
    for file in RESULTS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "speed.json").write_text(FOUND.model_dump_json())
    (tmp_path / "speed_7b.json").write_text(FOUND.model_dump_json())
    (tmp_path / "kernels.json").write_text(json.dumps(KERNELS))
    (tmp_path / "sparsity.json").write_text(json.dumps(SPARSITY))
    record = Comparison(model="demo", cells=[CELL])
    (tmp_path / "comparison.json").write_text(record.model_dump_json())
    (tmp_path / "peers_speed.md").write_text("| engine |\n|---|\n| another |\n")
    page = documents(tmp_path, ROOT)[ROOT / "docs" / "results.md"]
    assert "| prefill 2048 | 100.0 (99.5-100.5) 1.00x 50 % | the context is too short |" in page
    assert "a processor, 2 threads; median of 1-3 rounds" in page
    assert "## Speed in the shape of LLaMA-2-7B" in page
    assert "| 8x4 | 16 bfloat16 | int8 | 1.23 | 30.0 | 1.50× |" in page
    assert "| 2:4 | text | 2.50 | 0.2500 | 0.5000 | 10 s | A |" in page
    assert "`spq compare demo`" in page and "too small |" in page
    assert "## Speed of other engines\n\n| engine |" in page
    assert page.index("## Recipes") < page.index("## Speed") < page.index("## Time and memory")


def test_a_comparison_has_its_charts(tmp_path):
    stored = RESULTS / "comparison.json"
    (tmp_path / stored.name).write_bytes(stored.read_bytes())
    written = documents(tmp_path, ROOT)
    page = written.pop(ROOT / "docs" / "results.md")
    names = {f"size-against-loss-{text}.svg" for text in ("wikitext2", "c4")}
    assert {file.name for file in written} == names
    assert all(f"]({name})" in page for name in names)
    assert all(">ensemble<" in drawn for drawn in written.values())


def test_the_headline_stands_between_its_marks(tmp_path):
    stored = json.loads((RESULTS / "compress.json").read_text())
    stored["quality"]["dense"]["scores"]["wikitext2"]["perplexity"] = 123.456
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "compress.json").write_text(json.dumps(stored))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n")
    text = documents(tmp_path / "results", tmp_path)[readme]
    assert text.startswith("before\n<!-- headline -->\n") and "old" not in text
    assert "| dense | 269.1 | 123.46 |" in text and "tokens/s" not in text
    assert text.endswith("\n<!-- /headline -->\nafter\n")


def test_the_headline_has_budgets_and_decoding_where_they_were_measured():
    scores = {"wikitext2": {"perplexity": 20.0}, "c4": {"perplexity": 30.0}}
    recipes = {name: {"disk": 2e6, "scores": scores} for name in ("dense", "int8", "paper")}
    row = {"label": "default", "calibration": CALIBRATION, "recovered": False, "codes": {"int4": 3}}
    row |= {"target": 1.5, "disk": 1.4e6, "delta": {"wikitext2": 0.1, "c4": 0.0}}
    others = [row | {"recovered": True}, row | {"label": "another"}, row | {"codes": {"int8": 3}}]
    sizes = {"dense": {"wikitext2": 3.0, "c4": 3.0}, "rows": [row, *others]}
    decode = {"kind": "decode", "batch": 1}
    models = [
        {"name": name, "optimize": optimize, "rates": [{"measure": decode, "ratio": ratio}]}
        for name, optimize, ratio in (
            *(("dense", False, 1.0), ("1.5MB", False, 2.0)),
            *(("dense", True, 3.0), ("1.5MB", True, 4.0)),
        )
    ]
    for model in models:
        model["rates"][0]["rate"] = {"median": 10 * model["rates"][0]["ratio"]}
    lines = headline(recipes, sizes, {"threads": 2, "models": models}).splitlines()
    assert "| dense | 2.0 | 20.00 | 30.00 | plain transformers 10; 30 (3.0×) |" in lines
    assert "| `--target-size 1.5MB` | 1.4 | 22.20 | 20.09 | 40 (4.0×) |" in lines
    assert len([line for line in lines if line.startswith("|")]) == 6


def test_the_headline_has_at_most_eight_rows_and_drops_the_smallest_budgets():
    scores = {task: {"perplexity": 20.0} for task in ("wikitext2", "c4")}
    recipes = {name: {"disk": 2e6, "scores": scores} for name in ("dense", "int8", "paper")}
    row = {"label": "default", "calibration": CALIBRATION, "recovered": False, "codes": {"int4": 3}}
    row |= {"disk": 1.4e6, "delta": {"wikitext2": 0.1, "c4": 0.0}}
    sizes = {"dense": {"wikitext2": 3.0, "c4": 3.0}}
    sizes["rows"] = [row | {"target": target} for target in range(20, 10, -1)]
    text = headline(recipes, sizes, None)
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + 8
    assert "`--target-size 16MB`" in text and "`--target-size 15MB`" not in text
    assert "| paper |" in text


def test_the_headline_has_what_was_measured_at_the_bytes_of_llama_cpps_files():
    scores = {task: {"perplexity": 20.0} for task in ("wikitext2", "c4")}
    recipes = {name: {"disk": 2e6, "scores": scores} for name in ("dense", "int8", "paper")}
    peer = {"model": LARGER_MODEL, "kind": "q2_k", "by": PEER, "bytes": 5e6, "divergence": 0.25}
    ours = peer | {"by": OURS, "bytes": 4.9e6, "divergence": 0.0625}
    alone, other = peer | {"kind": "q3_k_m"}, [row | {"model": "demo"} for row in (peer, ours)]
    text = headline(recipes, None, None, {"rows": [peer, ours, alone, *other]})
    assert "\n| 4.9 | Q2_K | 0.250 | 0.062 |\n" in text and "Q3_K_M" not in text
    assert headline(recipes, None, None, {"rows": other}) == headline(recipes, None, None)
