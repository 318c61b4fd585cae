"""Methods at matched size, from the comparison.json of `spq compare`."""

from spqlm.comparison import Comparison
from spqlm.report.comparison import markdown
from spqlm.report.pictures import file_name, links, size_against_loss


def section(stored: dict) -> str:
    found = Comparison.model_validate(stored)
    return f"""## Methods at matched size

`spq compare {found.model}` ([what is compared](comparison.md)).

{links(size_against_loss(found.cells))}{markdown(found.cells)}
"""


def charts(stored: dict) -> dict[str, str]:
    """SVG by name of the file, which the section shows."""
    drawn = size_against_loss(Comparison.model_validate(stored).cells)
    return {file_name(text): chart for text, chart in drawn.items()}
