"""`worldstereo export`: the cloud of a saved map as PLY or PCD, a part of a model as verified ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.result_files import MAP_FILE
from worldstereo_ros.weights.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from worldstereo_ros.export.onnx import ExportedFile, OnStep
    from worldstereo_ros.export.verify import VerificationResult

_PANEL = "Model (.onnx only)"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Saved map (.wsmap), or a model: small or a WorldStereo checkpoint (folder, hub id)."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="FILE", help="Output file: .ply or .pcd for a map, .onnx for a model.")
    ],
    part: Annotated[
        str,
        typer.Option(
            metavar="PART",
            help="Part of the model: control, autoencoder-encoder or autoencoder-decoder.",
            rich_help_panel=_PANEL,
        ),
    ] = "control",
    variant: Annotated[
        str,
        typer.Option(
            metavar="VARIANT",
            help="Variant of the checkpoint: camera, memory or memory-dmd.",
            show_default="fewest denoising steps",
            rich_help_panel=_PANEL,
        ),
    ] = "",
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Precision: float32, float16 or bfloat16.", rich_help_panel=_PANEL)
    ] = "float32",
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX operator set, 18 to 23.", rich_help_panel=_PANEL)] = 20,
    attention: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Attention operators: fused (onnxruntime only) or standard (any runtime, TensorRT).",
            rich_help_panel=_PANEL,
        ),
    ] = "fused",
    offsets: Annotated[
        bool,
        typer.Option(
            help="Include the projections from the control branch to the width of the backbone.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
) -> None:
    """Export a map's cloud as PLY or PCD, or a part of a model as ONNX.

    An ONNX file is verified against torch and removed if the results differ.
    """
    if target.suffix.lower() == ".onnx":
        export_model(
            source,
            target,
            part=part,
            variant=variant or None,
            dtype=dtype,
            opset=opset,
            attention=attention,
            offsets=offsets,
        )
        return
    if Path(source).is_dir():
        if (saved := Path(source) / MAP_FILE).is_file():
            raise InputError(f"{source} is a folder of results; name the map in it, {saved}.")
        raise InputError(f"{source} is a folder, and no map. If it is a model, name an output that ends in .onnx.")
    if source == DEFAULT_MODEL and not Path(source).exists():
        raise InputError(f"A model is exported as ONNX, and {target} does not end in .onnx.")
    from worldstereo_ros.cli.summaries import point_counts
    from worldstereo_ros.io.point_cloud_formats import check_suffix
    from worldstereo_ros.io.point_clouds import write_point_cloud
    from worldstereo_ros.memory.archive import load_archive
    from worldstereo_ros.utils.atomic_files import check_writable

    check_suffix(target)
    check_writable(target)
    archive = load_archive(Path(source))
    write_point_cloud(archive.cloud, target)
    typer.echo(f"wrote {point_counts(archive.cloud)} to {target}")
    if archive.bank.metric is False:
        typer.echo("The unit of the map is arbitrary: the coordinates are not in metres.")


def export_model(
    model: str,
    target: Path,
    *,
    part: str = "control",
    variant: str | None = None,
    dtype: str = "float32",
    opset: int | None = None,
    attention: str = "fused",
    offsets: bool = False,
    console: Console | None = None,
) -> list[VerificationResult]:
    """Exports a part of a checkpoint to ONNX, verifies it and prints the errors as a table.

    Args:
        model: folder or hub id of a checkpoint.
        target: an .onnx file.
        part: one of `export.onnx.PARTS`.
        variant: variant of the checkpoint; None for the one with the fewest denoising steps.
        dtype: float32, float16 or bfloat16. A bfloat16 file is not verified: onnxruntime has no such kernels on the
            CPU.
        opset: ONNX operator set; None for the default.
        attention: fused or standard, see `export_control`.
        offsets: see `export_control`.
        console: where to print.

    Returns:
        One result for each size that was verified.

    Raises:
        ModelExportError: an argument is unknown, the part cannot be exported, or onnxruntime and torch differ; the
            file is removed then.
        CheckpointError: the checkpoint cannot be loaded.
        WriteError: the target cannot be written.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from worldstereo_ros.export.onnx import DTYPES, PARTS, ModelExportError, export_autoencoder, export_control
    from worldstereo_ros.export.verify import verify
    from worldstereo_ros.models.checkpoints.hub import find_checkpoint
    from worldstereo_ros.models.checkpoints.loading import load_autoencoder, load_transformer
    from worldstereo_ros.utils.atomic_files import check_writable

    if part not in PARTS:
        raise ModelExportError(f"The part '{part}' is unknown; one of {', '.join(PARTS)} was expected.")
    if dtype not in DTYPES:
        raise ModelExportError(f"The type '{dtype}' is unknown; one of {', '.join(DTYPES)} was expected.")
    if target.suffix.lower() != ".onnx":
        raise ModelExportError(f"{target} ends in '{target.suffix}'; a model is exported to an .onnx file.")
    if offsets and part != "control":
        raise ModelExportError(f"The option --offsets is for the part control; the part is {part}.")
    check_writable(target)
    console = console or Console()
    checkpoint = find_checkpoint(model, variant)
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], **({"opset": opset} if opset is not None else {})}
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        on_step = _show_steps(progress)
        if part == "control":
            transformer = load_transformer(checkpoint, on_progress=lambda done, total: on_step("reading", done, total))
            module = transformer.controlnet
            if module is None:
                raise ModelExportError(f"{checkpoint.folder} has no control branch.")
            exported = export_control(module, target, attention=attention, offsets=offsets, on_step=on_step, **settings)
        else:
            on_step("reading", 0, 1)
            module = load_autoencoder(checkpoint)
            on_step("reading", 1, 1)
            exported = export_autoencoder(module, target, part=part, on_step=on_step, **settings)
        try:
            checks = [] if dtype == "bfloat16" else verify(exported, module, on_step=on_step)
        except BaseException:  # interrupted, too: a file that stays was verified
            _remove(exported)
            raise
    console.print(_result_table(exported, checks))
    if not all(check.passes(dtype) for check in checks):
        _remove(exported)
        max_error = max(check.max_abs_error for check in checks)
        raise ModelExportError(f"onnxruntime and torch differ by {max_error:.2g}; {target} was removed.")
    return checks


def _remove(exported: ExportedFile) -> None:
    for file in (exported.path, exported.external_data):
        if file is not None:
            file.unlink(missing_ok=True)


def _show_steps(progress: Progress) -> OnStep:
    """A callback that shows each stage as a bar of its own."""
    tasks = {}

    def on_step(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done, total=total)

    return on_step


def _result_table(exported: ExportedFile, checks: list[VerificationResult]) -> Table | str:
    from rich.table import Table

    about = exported.metadata
    summary = f"{about['part']}, opset {about['opset']}, {about['dtype']}"
    if "attention" in about:
        summary += f", {about['attention']} attention, {about['layers']} {about['output']}"
    data_file = f" with {exported.external_data.name}" if exported.external_data else ""
    title = f"{exported.path.name}{data_file}: {exported.size / 2**20:.1f} MiB\n{summary}"
    if not checks:
        return f"{title}\nnot verified: onnxruntime has no bfloat16 kernels on the CPU"  # rich shows no empty table
    axes = "batch, frames, rows, columns" if about["part"] == "control" else "frames, rows, columns"
    table = Table(axes, "max abs error", "max abs value", "torch", "onnxruntime", "", title=title)
    for check in checks:
        passed = "[green]ok[/]" if check.passes(about["dtype"]) else "[red]differs[/]"
        times = (f"{1000 * seconds:.1f} ms" for seconds in (check.torch_seconds, check.onnxruntime_seconds))
        size = " x ".join(str(n) for n in check.size)
        table.add_row(size, f"{check.max_abs_error:.1e}", f"{check.max_abs_value:.2g}", *times, passed)
    return table
