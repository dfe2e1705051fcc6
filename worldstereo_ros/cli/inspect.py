"""`worldstereo inspect`: what a checkpoint or the folder of a place holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldstereo_ros.cli.options import MODEL
from worldstereo_ros.cli.place_folder import describe_folder, is_place
from worldstereo_ros.utils.errors import InputError


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="small (bundled model), a WorldStereo checkpoint (folder or hub id), anyrecon:PATH (AnyRecon's "
            "weights), or the folder of a place that `worldstereo reconstruct` made.",
        ),
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
    """Report a checkpoint's contents, memory needs and defects, or what a place was made of; read the headers only.

    The exit status is 1 if a variant cannot be loaded, or a file of the place is missing.
    """
    from worldstereo_ros.models import inspect_checkpoint, list_variants
    from worldstereo_ros.pipelines.auto import split_variant

    if model == "geometric":
        raise InputError("The pipeline geometric has no weights, so there is nothing to inspect.")
    if model.startswith("anyrecon:"):
        from worldstereo_ros.pipelines.anyrecon.inspection import inspect_anyrecon
        from worldstereo_ros.pipelines.auto import split_anyrecon

        weights = inspect_anyrecon(split_anyrecon(model.removeprefix("anyrecon:"), variant)[0])
        typer.echo(str(weights))
        raise typer.Exit(0 if weights.usable else 1)
    if is_place(Path(model)):
        if variant:
            raise InputError(f"{model} is a place; --variant is of checkpoints. Remove it.")
        lines, complete = describe_folder(Path(model))
        typer.echo("\n".join(lines))
        raise typer.Exit(0 if complete else 1)
    all_usable = True
    model, variant = split_variant(model, variant)
    for index, name in enumerate([variant] if variant else list_variants(model) or [None]):
        report = inspect_checkpoint(model, name)
        typer.echo(("\n" if index else "") + str(report))
        all_usable = all_usable and report.usable
    raise typer.Exit(0 if all_usable else 1)
