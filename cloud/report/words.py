"""Numbers as the report writes them."""

from __future__ import annotations


def auc(value: float | None, places: int = 4) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def signed(value: float | None) -> str:
    """With a sign, and a minus as wide as the plus."""
    if value is None:
        return "–"
    return f"{value:+.4f}".replace("-", "−") if abs(value) >= 0.00005 else "0"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def size(count: float | None) -> str:
    """Bytes, in powers of 1,000."""
    if count is None:
        return "–"
    sign, count = "−" if count < 0 else "", abs(count)
    if count < 1e3:
        return f"{sign}{count:.0f} B"
    return f"{sign}{count / 1e3:.1f} KB" if count < 1e6 else f"{sign}{count / 1e6:.2f} MB"


def number(value: float) -> str:
    return f"{value:,.0f}"


def counted(count: int, one: str, many: str = "") -> str:
    """`3 rounds`, `1 round`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
