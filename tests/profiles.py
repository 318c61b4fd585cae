"""A profile that follows from the shapes alone, so that tests need no clock."""

from spqlm.evaluation.machine import processor
from spqlm.formats import Format
from spqlm.formats.dense import Dense
from spqlm.model.extent import Extent
from spqlm.model.view import ModelView
from spqlm.profile import Product, Profile, Rest

# A decoding step takes as long as its bytes, a prompt as long as its products.
PER_BYTE, PER_PRODUCT = 1e-9, 1e-9


def profile_of(model, *formats: Format, batch: int = 1, context: int = 16, **fields) -> Profile:
    """Of a model's weights, and of factors of them, in some formats and in floats."""
    view = ModelView(model)
    shapes = {tuple(named.module.weight.shape) for named in view.linears()}
    shapes |= {(rows, 32) for rows, _ in shapes} | {(32, columns) for _, columns in shapes}
    products = [
        Product(
            format=form,
            rows=rows,
            columns=columns,
            tokens=tokens,
            seconds=form.stored_bytes(rows, columns, 4) * PER_BYTE
            if tokens <= batch
            else rows * columns * tokens * PER_PRODUCT,
        )
        for form in (Dense(), *formats)
        for rows, columns in sorted(shapes)
        if form.misfit(rows, columns) is None
        for tokens in sorted({1, batch, context})
    ]
    slopes = {"layer": 1e-6, "neuron": 1e-8, "group": 2e-6}
    known = {
        "processor": processor(),
        "kernels": "avx2",
        "threads": 1,
        "dtype": str(model.dtype).removeprefix("torch."),
        "extent": Extent.of(view),
        "rests": (
            Rest(kind="decode", tokens=batch, context=context, seconds=3e-5, **slopes),
            Rest(kind="prefill", tokens=context, context=0, seconds=3e-5, **slopes),
        ),
    }
    return Profile(**(known | fields), products=tuple(products))
