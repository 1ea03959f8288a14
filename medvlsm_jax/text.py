"""Tables and numbers as the terminal, the pages and the papers print them."""

import math
from collections.abc import Iterable, Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Plain text in aligned columns; the first row is the header, columns after the first are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def listed(items: Iterable[object], most: int, noun: str = "") -> str:
    """The first few of some things, and how many more there are; `noun` says what they are."""
    texts = list(map(str, items))
    more = f" and {len(texts) - most} more {noun}".rstrip() if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def percent(value: float) -> str:
    """A share as the paper prints it."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval in percent; a dash where there is none."""
    return "-" if low is None or high is None else f"{percent(low)} to {percent(high)}"
