"""The recipe `quick` on given text, for comparisons of one thing at many settings."""

from spqlm.recipe import Recipe


def quick(windows: int = 32) -> Recipe:
    """On wikitext2_valid.

    Args:
        windows: of 512 tokens; half of them price, 16 at most.
    """
    return Recipe.from_dict(
        {
            "like": "quick",
            "calibration": {"source": "wikitext2_valid", "windows": windows},
            "stages": [{"budget": {"priced_windows": min(16, windows // 2)}}],
        }
    )
