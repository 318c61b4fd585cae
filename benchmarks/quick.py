"""The recipe `default` in a quarter of its time, for comparisons of one thing at many settings."""

from spqlm.recipe import Recipe, load_recipe


def quick(windows: int = 32) -> Recipe:
    """A quarter of its windows, from wikitext2_valid, and GPTQ without descent.

    Args:
        windows: of 512 tokens, instead; half of them price, 16 at most.
    """
    fields = load_recipe("default").to_dict()
    fields["calibration"] |= {"source": "wikitext2_valid", "windows": windows}
    fields["stages"][0]["budget"] |= {"rounding": "gptq", "priced_windows": min(16, windows // 2)}
    return Recipe.from_dict(fields)
