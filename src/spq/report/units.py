"""Numbers as people read them. MB is 10^6 bytes throughout."""


def megabytes(count: int) -> str:
    """Bytes as MB with one decimal: `135.0 MB`."""
    return f"{count / 1e6:.1f} MB"


def ratio(part: int, whole: int) -> str:
    """`part` as a share of `whole`: `50.2 %`."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
