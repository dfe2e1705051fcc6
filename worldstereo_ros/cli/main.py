"""The `worldstereo` command: its sub-commands, one module each.

The modules import nothing heavy at the top, so that `--help` is quick and a missing package affects only the commands
that use it.
"""

from __future__ import annotations

import typer

from worldstereo_ros.cli.batch import batch
from worldstereo_ros.cli.demo import demo
from worldstereo_ros.cli.doctor import doctor
from worldstereo_ros.cli.errors import ErrorReportingGroup
from worldstereo_ros.cli.evaluate import evaluate
from worldstereo_ros.cli.export import export
from worldstereo_ros.cli.imagine import imagine
from worldstereo_ros.cli.inspect import inspect
from worldstereo_ros.cli.interrupts import prepare_process
from worldstereo_ros.cli.panorama import panorama
from worldstereo_ros.cli.pointmaps import pointmaps
from worldstereo_ros.cli.reconstruct import reconstruct
from worldstereo_ros.cli.score import score
from worldstereo_ros.cli.serve import serve
from worldstereo_ros.cli.stereo import stereo
from worldstereo_ros.cli.train import app as train
from worldstereo_ros.cli.view import view

app = typer.Typer(
    cls=ErrorReportingGroup,
    help="A world model for robots: remembers what sensors observed, imagines the rest, and labels every pixel.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # reflows the lines of docstrings
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(demo)
app.command()(imagine)
app.command()(panorama)
app.command()(reconstruct)
app.command()(stereo)
app.command()(pointmaps)
app.command()(view)
app.command()(score)
app.command()(serve)
app.command()(batch)
app.command()(evaluate)
app.command()(export)
app.command()(inspect)
app.command()(doctor)
app.add_typer(train, name="train")


def main() -> None:
    """Runs the `worldstereo` command. Of several processes (torchrun) the first runs it and the others work for it."""
    prepare_process()
    from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count, run_worker, stop_workers

    if is_worker():
        run_worker()
        return
    try:
        app()
    finally:
        if process_count() > 1:
            stop_workers()
