"""Options that several commands share, and the groups that `--help` shows options in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worldstereo_ros.utils.errors import InputError

INPUT, PATH, MODEL, OUTPUT = "Input", "Path", "Model", "Output"

Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Pipeline: geometric (no weights), small (bundled model), or a WorldStereo checkpoint (folder or hub id).",
        rich_help_panel=MODEL,
    ),
]
Variant = Annotated[
    str,
    typer.Option(
        metavar="VARIANT",
        help="Variant of the checkpoint: camera, memory or memory-dmd.",
        show_default="fewest denoising steps",
        rich_help_panel=MODEL,
    ),
]
DepthModel = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Depth estimator where the input has no depth: small (bundled network), a transformers depth model "
        "(folder or hub id), or none.",
        show_default="small",
        rich_help_panel=MODEL,
    ),
]
Fill = Annotated[
    str,
    typer.Option(
        metavar="FILL",
        help="What geometric and small show where nothing was seen: smooth, planes (of a closed room), or auto (small "
        "planes, geometric smooth).",
        rich_help_panel=MODEL,
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Text prompt: a sentence that describes the place.",
        show_default="that of the input, if any",
        rich_help_panel=MODEL,
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Random seed of the model.", min=0, max=2**32 - 1, rich_help_panel=MODEL)
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Torch device: cpu, cuda or cuda:N.", rich_help_panel=MODEL)
]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.", rich_help_panel=OUTPUT)]


def check_model_options(model: str, *, variant: str = "", dtype: str = "auto", prompt: str = "") -> None:
    """Checks that the options of a model are for it, so that none is silently without effect.

    Args:
        model: name of the pipeline, as in --model.
        variant, dtype, prompt: values of the options; those of the defaults are not given.

    Raises:
        InputError: there is no name, or the geometric pipeline, which has no networks, gets an option of networks.
    """
    if not model:
        raise InputError("--model is empty; the name of a pipeline, such as small, or a checkpoint was expected.")
    given = {"--variant": variant, "--dtype": dtype.replace("auto", ""), "--prompt": prompt}
    for option, value in given.items():
        if model == "geometric" and value:
            raise InputError(f"The pipeline geometric has no networks, and {option} is for those. Remove the option.")
