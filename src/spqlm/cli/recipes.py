"""`spq recipes`."""

from rich.console import Console
from rich.markdown import Markdown

GROUP = "Look"
EXAMPLES = ("spq recipes", "spq recipes > recipes.md")


def command() -> None:
    """List the recipes, and every parameter of every stage."""
    from spqlm.report.recipe_reference import recipe_reference

    console = Console()
    if console.is_terminal:
        console.print(Markdown(recipe_reference()))
    else:
        print(recipe_reference())
