"""The recipe `default` in a quarter of its time, for comparisons of one thing at many settings."""

from spqlm.recipe import Recipe, load_recipe


def quick() -> Recipe:
    """A quarter of its windows, from wikitext2_valid, and GPTQ without descent."""
    fields = load_recipe("default").to_dict()
    fields["calibration"] |= {"source": "wikitext2_valid", "windows": 32}
    fields["stages"][0]["budget"] |= {"rounding": "gptq", "priced_windows": 16}
    return Recipe.from_dict(fields)
