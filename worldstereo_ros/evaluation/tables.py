"""Tables of figures for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.table import Table

R = TypeVar("R")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its first line.
        value: the cell of a row: text as it is, a number by `form`, None as "-".
        form: format of numbers.
        label: text to the left; figures are aligned to the right.
        fold: break long text over several lines instead of shortening it.
    """

    heading: str
    value: Callable[[Any], Any]
    form: str = "{}"
    label: bool = False
    fold: bool = False


def build_table(
    rows: Sequence[R],
    columns: Sequence[Column],
    *,
    title: str | None = None,
    caption: str | None = None,
    bold: Callable[[R], bool] = lambda row: False,
    ends_section: Callable[[int], bool] = lambda index: False,
) -> Table:
    """Builds a table.

    Args:
        rows: any objects.
        columns: what to show of each.
        title: a line above the table.
        caption: what the columns mean, below the table.
        bold: which rows are bold.
        ends_section: the numbers of the rows that a line follows.
    """
    table = Table(title=title, caption=caption, caption_justify="left")
    for column in columns:
        if column.label:
            table.add_column(column.heading, no_wrap=not column.fold, overflow="fold" if column.fold else "ellipsis")
        else:
            table.add_column(column.heading, justify="right")
    for index, row in enumerate(rows):
        cells = [format_value(column.value(row), column.form) for column in columns]
        table.add_row(*cells, style="bold" if bold(row) else None, end_section=ends_section(index))
    return table


def format_value(value: Any, form: str) -> str:
    """A value as text; "-" for None."""
    return "-" if value is None else form.format(value)
