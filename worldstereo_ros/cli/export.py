"""`worldstereo export` of a model: load, trace, write, verify, and say so in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worldstereo_ros.export.onnx import (
    DTYPES,
    PARTS,
    Exported,
    ModelExportError,
    OnStep,
    export_autoencoder,
    export_control,
)
from worldstereo_ros.export.verify import Check, verify
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder, load_transformer


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
) -> list[Check]:
    """Exports a part of a checkpoint to `target` and prints how exactly it matches.

    Args:
        model: folder or hub id of a checkpoint.
        target: an .onnx file.
        part: one of `PARTS`.
        variant: of the checkpoint; None: the one that is there.
        dtype: float32, float16 or bfloat16; the last is written and not verified, for onnxruntime's CPU has no such
            kernels.
        opset: of ONNX; None: the default.
        attention: fused or standard, see `export_control`.
        offsets: see `export_control`.
        console: where to print.

    Raises:
        ValueError, RuntimeError: the checkpoint or the part cannot be exported, or the file does not compute the same;
            it is removed then.
    """
    if part not in PARTS:
        raise ModelExportError(f"The part '{part}' is not known; choose one of {', '.join(PARTS)}.")
    if dtype not in DTYPES:
        raise ModelExportError(f"The type '{dtype}' is not known; choose one of {', '.join(DTYPES)}.")
    if target.suffix.lower() != ".onnx":
        raise ModelExportError(f"{target} ends in '{target.suffix}'; a model is written to an .onnx file.")
    console = console or Console()
    checkpoint = find_checkpoint(model, variant)
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], **({"opset": opset} if opset is not None else {})}
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        on_step = _steps(progress)
        if part == "control":
            whole = load_transformer(checkpoint, on_progress=lambda done, total: on_step("reading", done, total))
            module = whole.controlnet
            if module is None:
                raise ModelExportError(f"{checkpoint.folder} has no control branch.")
            exported = export_control(module, target, attention=attention, offsets=offsets, on_step=on_step, **settings)
        else:
            on_step("reading", 0, 1)
            module = load_autoencoder(checkpoint)
            on_step("reading", 1, 1)
            exported = export_autoencoder(module, target, part=part, on_step=on_step, **settings)
        checks = [] if dtype == "bfloat16" else verify(exported, module, on_step=on_step)
    console.print(_table(exported, checks))
    if not all(check.passes(dtype) for check in checks):
        for file in (exported.path, exported.data):
            if file is not None:
                file.unlink(missing_ok=True)
        worst = max(check.error for check in checks)
        raise ModelExportError(f"onnxruntime and torch differ by {worst:.2g} and {target} was removed.")
    return checks


def _steps(progress: Progress) -> OnStep:
    tasks = {}

    def on_step(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done, total=total)

    return on_step


def _table(exported: Exported, checks: list[Check]) -> Table:
    about = exported.description
    kind = f"{about['part']}, opset {about['opset']}, {about['dtype']}"
    if "attention" in about:
        kind += f", {about['attention']} attention, {about['layers']} {about['output']}"
    beside = f" with {exported.data.name}" if exported.data else ""
    title = f"{exported.path.name}{beside}: {exported.size / 2**20:.1f} MiB\n{kind}"
    if not checks:
        return Table(title=f"{title}\nnot verified: onnxruntime runs no bfloat16 on the CPU")
    axes = "batch, frames, rows, columns" if about["part"] == "control" else "frames, rows, columns"
    table = Table(axes, "max abs error", "of", "torch", "onnxruntime", "", title=title)
    for check in checks:
        passed = "[green]ok[/]" if check.passes(about["dtype"]) else "[red]differs[/]"
        seconds = (f"{1000 * t:.1f} ms" for t in (check.torch_seconds, check.runtime_seconds))
        size = " x ".join(str(n) for n in check.size)
        table.add_row(size, f"{check.error:.1e}", f"{check.scale:.2g}", *seconds, passed)
    return table
