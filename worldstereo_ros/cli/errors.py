"""How a command ends when something is wrong: one sentence, status 1."""

from __future__ import annotations

import typer


def fail(message: object) -> typer.Exit:
    """Prints one sentence and ends with status 1."""
    typer.secho(f"worldstereo: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(1)
