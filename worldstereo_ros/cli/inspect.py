"""`worldstereo inspect`: what a checkpoint holds."""

from __future__ import annotations

from typing import Annotated

import typer

from worldstereo_ros.cli.options import MODEL
from worldstereo_ros.utils.errors import InputError


def inspect(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="small (bundled model), or a WorldStereo checkpoint (folder or hub id)."),
    ],
    variant: Annotated[
        str,
        typer.Option(
            metavar="VARIANT",
            help="Variant to report: camera, memory or memory-dmd.",
            show_default="all that are there",
            rich_help_panel=MODEL,
        ),
    ] = "",
) -> None:
    """Report a checkpoint's contents, memory needs and defects; read the headers only.

    The exit status is 1 if a variant cannot be loaded.
    """
    from worldstereo_ros.models import inspect_checkpoint, list_variants
    from worldstereo_ros.pipelines.auto import split_variant

    if model == "geometric":
        raise InputError("The pipeline geometric has no weights, so there is nothing to inspect.")
    all_usable = True
    model, variant = split_variant(model, variant)
    for index, name in enumerate([variant] if variant else list_variants(model) or [None]):
        report = inspect_checkpoint(model, name)
        typer.echo(("\n" if index else "") + str(report))
        all_usable = all_usable and report.usable
    raise typer.Exit(0 if all_usable else 1)
