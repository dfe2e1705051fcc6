"""Output of an evaluation: rows as JSON files and as lines of progress, tables in full width."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from worldstereo_ros.utils.atomic_files import write_json
from worldstereo_ros.utils.errors import InputError

R = TypeVar("R")

TABLE_WIDTH = 240  # characters, where the output is not a terminal


def write_rows(path: Path, rows: Sequence[dict[str, Any]], means: Sequence[dict[str, Any]]) -> None:
    """Writes {"rows": [...], "means": [...]}, null where a figure does not apply. Creates the folder if it is missing.

    Raises:
        ValueError: a figure is infinite or NaN.
        WriteError: the file cannot be written.
    """
    write_json(path, {"rows": list(rows), "means": list(means)})


def read_rows(path: Path, parse: Callable[[dict[str, Any]], R], command: str) -> list[R]:
    """Reads the rows that `write_rows` wrote.

    Args:
        path: the file.
        parse: makes a row of its values. May raise TypeError or AttributeError for values that are none.
        command: the command that writes such files, for the message.

    Raises:
        InputError: the file holds something else.
    """
    try:
        return [parse(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no rows of `{command}` ({error}).") from None


def row_recorder(
    console: Console, line: Callable[[R], str], write: Callable[[Sequence[R], Path], None], file: Path | None
) -> Callable[[Sequence[R]], None]:
    """Returns a function to call with rows when they are ready.

    It prints a line for each, and rewrites the file with all rows so far, so that an interruption loses none.

    Args:
        console: where the lines are printed.
        line: a row as one line of text.
        write: writes rows to a file.
        file: the file; None to write none.
    """
    finished: list[R] = []

    def record(rows: Sequence[R]) -> None:
        finished.extend(rows)
        for row in rows:
            console.print(line(row), style="dim", highlight=False, soft_wrap=True)
        if file is not None:
            write(finished, file)

    return record


def note_printer(console: Console) -> Callable[[str], None]:
    """Returns a function that prints a sentence for the user, such as one about damaged frames."""
    return lambda text: console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)


def print_table(console: Console, table: Table) -> None:
    """Prints a table; where the output is not a terminal, in full: Rich assumes 80 columns there and would cut it."""
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(table)


def prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    """Returns a callback that passes each text on to `progress`, after the prefix and a comma."""
    return lambda text: progress(f"{prefix}, {text}")
