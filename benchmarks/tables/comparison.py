"""Methods at matched size, from the comparison.json of `spq compare`."""

from benchmarks.tables.curves import NAME, pictures

from spq.comparison import Comparison
from spq.report.comparison import markdown


def section(stored: dict) -> str:
    found = Comparison.model_validate(stored)
    charts = "".join(
        f"Size against loss on {text}, with standard errors:\n\n![{text}]({NAME.format(text=text)})\n\n"
        for text in pictures(stored)
    )
    return f"""## Methods at matched size

`spq compare {found.model}` ([what is compared](comparison.md)).

{charts}{markdown(found.cells)}
"""
