"""Which rows or columns of a weight one of several processors holds (tensor parallelism).

A weight that writes heads, or rows of a vocabulary, is cut where the engine cuts them: each
processor has a fixed number of places, and a model that was pruned leaves the last ones empty.
Neurons are cut where groups of the layer that reads them end.
"""


def places(there: int, each: int, rank: int) -> range:
    """What one processor holds where each has room for the same number.

    Args:
        there: rows or columns that the weight has.
        each: that one processor has room for.
        rank: of the processor.

    Returns:
        consecutive; at most `each`, and none where those before have room for all.
    """
    first = min(rank * each, there)
    return range(first, min(first + each, there))


def even(there: int, multiple: int, rank: int, count: int) -> range:
    """What one processor holds where units that stay together are dealt out evenly.

    Args:
        there: rows or columns that the weight has.
        multiple: that stay together; divides `there`.
        rank: of the processor.
        count: of processors.

    Raises:
        ValueError: there are fewer units than processors.
    """
    units = there // multiple
    if units < count:
        raise ValueError(
            f"its {there} neurons go by whole groups of {multiple}, which {count} processors "
            "cannot share"
        )
    return range(units * rank // count * multiple, units * (rank + 1) // count * multiple)
