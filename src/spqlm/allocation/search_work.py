"""What pricing does, counted from shapes alone: see `calibration.work`.

How many shapes and options are looked at follows from prices. What is counted is about what random
models of 4 and 8 layers took: of searches for ranks, each layer was walked to 1.4 to 2.5 times more
and 0.9 to 1.6 options of a weight were rounded; of searches for widths and ranks 1.8 to 3.1 times,
and 0.9 to 3.2 options.
"""

from collections import Counter
from collections.abc import Iterable
from typing import cast

from spqlm.allocation.left_out import AGAIN, WINDOWS
from spqlm.allocation.menu import Menu
from spqlm.allocation.pricing import PROBED_ROWS, sampled_rows
from spqlm.allocation.search import Shares
from spqlm.allocation.units import AT_ONCE
from spqlm.calibration.work import Decomposition, Elimination, Fit, Inverse, Pruning, Spectrum, Work
from spqlm.formats import Format
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.low_rank import LowRank
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.group_pruning import ROUNDS

# Walks beyond the first where shapes or options are searched, and where both are.
WALKS, WALKS_FOR_BOTH = 2, 3


def priced_fits(menu: Menu, named: Named) -> Counter[Fit | Pruning]:
    """What pricing a weight as it is rounds: every option, on some rows.

    Args:
        menu: options of each weight.
        named: the weight.
    """
    rows, columns = named.module.weight.shape
    options, sampled = menu.options(named, rows, columns), len(sampled_rows(rows))
    rounded = ((option, menu.sampled_rounding_of(option)) for option in options)
    fits: Counter[Fit | Pruning] = Counter(Fit(*option, sampled, columns) for option in rounded)
    if (probe := menu.descent_probe(options)) is not None:
        few = min(rows, PROBED_ROWS)
        fits.update(Fit(probe, how, few, columns) for how in ("gptq", "descent"))
    return fits


def rounding_work(menu: Menu, weights: Iterable[Named], share: float, *, priced: bool) -> Work:
    """What rounding takes: every option of a weight on some rows if it is priced, then one on all.

    Prices decide which one. What is counted leaves all weights together nearest to the share.

    Args:
        menu: options of each weight.
        weights: that are rounded.
        share: of a dense weight's bytes that the result may have.
        priced: whether options are priced.
    """
    fits: Counter[Fit | Pruning] = Counter()
    inverses: Counter[Decomposition] = Counter()
    room = 0.0
    for named in weights:
        weight = named.module.weight
        rows, columns = weight.shape
        options = menu.options(named, rows, columns)
        if priced:
            fits.update(priced_fits(menu, named))
            ways = {menu.rounding_of(option) for option in options}
            inverses[Inverse(columns)] += ways != {"nearest"}
        room += share * weight.numel() * weight.element_size()
        left = [room - menu.stored_bytes(named, option, rows, columns) for option in options]
        room = min(left, key=abs)
        chosen = options[left.index(room)]
        rounding = menu.rounding_of(chosen)
        fits[Fit(chosen, rounding, rows, columns)] += 1
        inverses[Inverse(columns)] += rounding != "nearest"
    return Work(fits=fits, spectra=+inverses)


def search_work(view: ModelView, menu: Menu, shares: Shares, tokens: int) -> Work:
    """What searches for widths, key/value groups, ranks and sparsities add to that.

    Args:
        view: the model.
        menu: options of each weight.
        shares: sizes that each kind of unit may take.
        tokens: that options are priced on.
    """
    cuts = any(shares.values())
    chooses = any(menu.ranks.values()) or any(menu.sparsities.values())
    if not cuts and not chooses:
        return Work()
    walks = WALKS_FOR_BOTH if cuts and chooses else WALKS
    total = Work(read=walks * tokens, moments=walks * tokens)
    for layer in view.layers:
        readers = _readers(layer, shares)
        total += Work(spectra=Counter(readers.values()))
        for named in layer.leaves:
            total += _options_work(menu, named, AT_ONCE + cuts)
            # What a cut leaves of a row is priced with the row, unless it has options of its own.
            times = (1 if chooses else AT_ONCE if named.name in readers else 0) if cuts else 0
            for _ in range(times):
                total += Work(fits=priced_fits(menu, named))
    return total


def left_out_work(view: ModelView, count: int, context: int) -> Work:
    """What pricing layers that may go takes: the model runs without each, and some of them again.

    Args:
        view: the model.
        count: layers that may go.
        context: tokens in a window.
    """
    layers = len(view.layers)
    count = min(count, layers - 1)
    if count <= 0:
        return Work()
    tokens = WINDOWS * context * (1 + layers + min(AGAIN, layers) * count)
    return Work(read=tokens, heads=tokens)


def _readers(layer: LayerView, shares: Shares) -> dict[str, Elimination]:
    """By full name, what loses inputs where a unit of the layer is cut."""
    found = {}
    for kind, sizes in shares.items():
        reader = [named for named, side in layer.sides(kind) if side == "input"] if sizes else []
        if reader:
            module = reader[0].module
            channels = module.in_features // layer.units(kind)
            shape = module.out_features, module.in_features
            found[reader[0].name] = Elimination(*shape, channels, min(sizes), len(sizes))
    return found


def _options_work(menu: Menu, named: Named, tried: int) -> Work:
    """Options of a weight that are estimated, and some of them rounded: those in the middle."""
    rows, columns = named.module.weight.shape
    low, sparse = menu.low_rank(named, rows, columns), menu.sparse(named, rows, columns)
    fits: Counter[Fit | Pruning] = Counter()
    spectra: Counter[Decomposition] = Counter()
    if low:
        option = cast(LowRank, low[len(low) // 2])
        rounding, factor = menu.rounding_of(option), cast(Format, option.factor)
        fits[Fit(factor, rounding, option.rank, columns)] += tried
        fits[Fit(factor, rounding, rows, option.rank)] += tried
        # The losses of directions of the output, and the directions.
        spectra[Spectrum(rows, max(rows, columns), True)] += 1 + tried
    elif sparse:
        form = cast(GroupSparse, sparse[len(sparse) // 2])
        share = form.sparsity(rows, columns)
        fits[Pruning(form, share, "first_order", "free", ROUNDS, rows, columns)] += tried
    return Work(fits=fits, spectra=spectra)
