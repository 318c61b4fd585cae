"""Which ways there are to store a weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from spqlm.allocation.storage import Option, Rounding
from spqlm.errors import SpqError
from spqlm.model.view import Named, Role


@dataclass(frozen=True)
class Menu:
    """Which options a weight has.

    Attributes:
        bits: by role.
        group_sizes: of 4-bit codes.
        ranks: by role, as shares of the rank at which two factors are as large as the weight.
        rounding: by bits.
        sparsities: by role, shares of the groups that 4-bit weights may do without.
        sparse_group_size: of those groups.
    """

    bits: Mapping[Role, tuple[int, ...]]
    group_sizes: tuple[int, ...]
    ranks: Mapping[Role, tuple[float, ...]]
    rounding: Mapping[int, Rounding]
    sparsities: Mapping[Role, tuple[float, ...]] = field(default_factory=dict)
    sparse_group_size: int = 16

    def options(self, named: Named, columns: int) -> list[Option]:
        """Ways to store the weight itself; none where no group size divides its width."""
        return [option for option in self._allowed(named) if option.fits(columns)]

    def check(self, named: Named) -> None:
        """Refuse a weight that there is no way to store.

        Raises:
            SpqError: no group size divides its width.
        """
        columns = named.module.weight.shape[1]
        if not self.options(named, columns):
            raise SpqError(
                f"group sizes {list(self.group_sizes)} do not divide the width {columns} of "
                f"{named.name!r}; allow 8 bits or another group size"
            )

    def low_rank(self, named: Named, rows: int, columns: int) -> list[Option]:
        """Ways to store two factors of a weight [rows, columns], where those are smaller."""
        multiple = min(self.group_sizes, default=32)
        even = rows * columns / (rows + columns)
        shares = self.ranks.get(named.role, ())
        wanted = {int(share * even) // multiple * multiple for share in shares}
        ranked = [
            option.model_copy(update={"rank": rank})
            for rank in sorted(wanted - {0}, reverse=True)
            for option in self._allowed(named)
        ]
        return [option for option in ranked if option.fits(columns)]

    def sparse(self, named: Named, columns: int) -> list[Option]:
        """Ways to store only some groups of a weight, where that leaves each row some."""
        size = self.sparse_group_size
        if 4 not in self.bits[named.role] or columns % size:
            return []
        return [
            Option(bits=4, group_size=size, sparsity=share)
            for share in self.sparsities.get(named.role, ())
            if columns // size * (1 - share) >= 1
        ]

    def _allowed(self, named: Named) -> list[Option]:
        bits = self.bits[named.role]
        grouped = [Option(bits=4, group_size=size) for size in self.group_sizes if 4 in bits]
        return grouped + [Option(bits=wide) for wide in (8, 16) if wide in bits]


def stored_bytes(named: Named, option: Option, rows: int, columns: int) -> int:
    """Of a weight [rows, columns] and its bias."""
    weight, bias = named.module.weight, getattr(named.module, "bias", None)
    extra = 0 if bias is None else rows * bias.element_size()
    return option.stored_bytes(rows, columns, weight.element_size()) + extra
