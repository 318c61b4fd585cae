"""Which ways there are to store a weight: a list of formats."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from spqlm.allocation.sizes import Sizes
from spqlm.errors import SpqError
from spqlm.formats import Format
from spqlm.formats.base import Rounding
from spqlm.formats.group_sparse import of_share
from spqlm.formats.low_rank import LowRank
from spqlm.model.view import Named, Role

# Ranks are rounded down to a multiple of this where no format asks for another.
RANK_MULTIPLE = 32


@dataclass(frozen=True)
class Menu:
    """Which formats a weight may take.

    Attributes:
        formats: of the weight itself, by role.
        ranks: by role, as shares of the rank at which two factors are as large as the weight.
        sparsities: by role, shares of its groups that a weight may do without.
        sparse_group_size: inputs in such a group.
        sparse_bits: of the codes of the groups that stay.
        rounding: of formats whose rounding costs something.
        fine_rounding: of the others.
        sizes: how bytes are counted; no part of what a price is.
    """

    formats: Mapping[Role, tuple[Format, ...]]
    ranks: Mapping[Role, tuple[float, ...]] = field(default_factory=dict)
    sparsities: Mapping[Role, tuple[float, ...]] = field(default_factory=dict)
    sparse_group_size: int = 16
    sparse_bits: int = 4
    rounding: Rounding = "gptq"
    fine_rounding: Rounding = "nearest"
    sizes: Sizes = field(default=Sizes(), repr=False, compare=False)

    def options(self, named: Named, rows: int, columns: int) -> list[Format]:
        """Ways to store the weight itself at a shape; none where no group size divides it."""
        return [form for form in self.formats[named.role] if form.misfit(rows, columns) is None]

    def check(self, named: Named) -> None:
        """Refuse a weight that there is no way to store.

        Raises:
            SpqError: no format fits its shape.
        """
        rows, columns = named.module.weight.shape
        if not self.options(named, rows, columns):
            formats = self.formats[named.role]
            why = "; ".join(f"{form.name}: {form.misfit(rows, columns)}" for form in formats)
            raise SpqError(
                f"no format of the menu fits {named.name!r} ({why}); allow int8 or another group "
                "size"
            )

    def low_rank(self, named: Named, rows: int, columns: int) -> list[Format]:
        """Ways to store two factors of a weight, where those are smaller."""
        formats = self.formats[named.role]
        multiples = [form.multiple for form in formats if form.multiple > 1]
        multiple = min(multiples, default=RANK_MULTIPLE)
        even = rows * columns / (rows + columns)
        shares = self.ranks.get(named.role, ())
        wanted = {int(share * even) // multiple * multiple for share in shares}
        ranked = [
            LowRank(rank=rank, factor=form)
            for rank in sorted(wanted - {0}, reverse=True)
            for form in formats
            if not form.rounds_inputs
        ]
        return [form for form in ranked if form.misfit(rows, columns) is None]

    def sparse(self, named: Named, rows: int, columns: int) -> list[Format]:
        """Ways to store only some groups of a weight, where that leaves each row some."""
        size = self.sparse_group_size
        if columns % size:
            return []
        return [
            of_share(rows, columns, size, self.sparse_bits, share)
            for share in self.sparsities.get(named.role, ())
            if columns // size * (1 - share) >= 1
        ]

    @property
    def rounds_inputs(self) -> bool:
        """Whether any of the formats rounds what enters a weight, so that this is to be priced."""
        return any(form.rounds_inputs for formats in self.formats.values() for form in formats)

    def rounding_of(self, form: Format) -> Rounding:
        """How weights become codes of a format."""
        inner = form.factor or form if isinstance(form, LowRank) else form
        return self.fine_rounding if inner.fine else self.rounding

    def sampled_rounding_of(self, form: Format) -> Rounding:
        """How rows are rounded that stand for all of a weight: without descent, which is slow."""
        rounding = self.rounding_of(form)
        return "gptq" if rounding == "descent" else rounding

    def descent_probe(self, options: list[Format]) -> Format | None:
        """The one by which it is seen how much descent gains; None where nothing is so rounded."""
        improved = [form for form in options if self.rounding_of(form) == "descent"]
        return improved[len(improved) // 2] if improved else None

    def stored_bytes(self, named: Named, form: Format, rows: int, columns: int) -> int:
        """Of a weight [rows, columns] and its bias, where the result goes."""
        return self.sizes.stored(named.module, form, rows, columns)
