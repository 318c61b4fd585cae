"""Write docs/results.md, its charts and README's headline table: `make results`."""

from benchmarks.tables import documents

for file, text in documents().items():
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file.name}")
