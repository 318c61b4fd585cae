"""Methods at matched size, from the comparison.json of `spq compare`."""

from spq.comparison import Comparison
from spq.report.comparison import markdown


def section(stored: dict) -> str:
    found = Comparison.model_validate(stored)
    return f"""## Methods at matched size

`spq compare {found.model}` ([what is compared](comparison.md)).

{markdown(found.cells)}
"""
