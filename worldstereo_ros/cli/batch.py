"""`worldstereo batch`: many sources, paths and seeds on many processes or machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, OUTPUT
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from worldstereo_ros.batch.engines import Engine
    from worldstereo_ros.batch.job_list import JobList
    from worldstereo_ros.batch.jobs import WorkerSpec
    from worldstereo_ros.batch.runner import BatchObserver

ENGINE = "Engine"
ENGINES = ("local", "ray")


def batch(
    jobs: Annotated[
        Path,
        typer.Argument(
            metavar="JOBS", help="List of jobs (YAML): sources x paths x seeds. Its relative paths start in its folder."
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only check the list and say what it holds.", rich_help_panel=INPUT)
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="local (processes of this machine) or ray (also several machines).",
            rich_help_panel=ENGINE,
        ),
    ] = "local",
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster: auto (the one that this machine is part of) or HOST:PORT of its head.",
            show_default="one of this machine alone",
            rich_help_panel=ENGINE,
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of workers. Each holds the model and uses one core.",
            show_default="one for each core of this machine",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    attempts: Annotated[
        int,
        typer.Option(
            metavar="N", help="How often a job is started whose worker dies.", min=1, max=100, rich_help_panel=ENGINE
        ),
    ] = 3,
    job_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time after which a job that has not ended is stopped and counts as failed; the others continue.",
            show_default="no limit",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Output folder. If a run was interrupted there, this one continues it.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("batch_out"),
) -> None:
    """Imagine along many paths from many sources, on several processes or machines.

    Each job gets the folder SOURCE/PATH/seed_N with what `worldstereo imagine` writes, and checksums; manifest.json
    says how each one ended. Finished jobs are not run again. The exit status is 1 if a job failed.
    """
    from rich.console import Console
    from rich.markup import escape

    from worldstereo_ros import __version__
    from worldstereo_ros.batch.job_list import read_job_list
    from worldstereo_ros.batch.ray_engine import check_address, check_ray
    from worldstereo_ros.batch.runner import run_batch
    from worldstereo_ros.cli.batch_jobs import setup
    from worldstereo_ros.cli.options import check_model_options
    from worldstereo_ros.cli.sources import parse_size
    from worldstereo_ros.geometry.capture_paths import CAPTURE_PATHS
    from worldstereo_ros.geometry.trajectories import TRAJECTORIES
    from worldstereo_ros.io.results_folder import ResultsFolder
    from worldstereo_ros.weights.bundled import DEFAULT_MODEL

    console = Console()
    if engine not in ENGINES:
        raise InputError(f"The engine '{engine}' is unknown; {' or '.join(ENGINES)} was expected.")
    if engine == "local" and address:
        raise InputError("--address is that of a Ray cluster; add --engine ray, or remove it.")
    if engine == "ray":
        check_ray()
        check_address(address)
    presets = (*TRAJECTORIES, *CAPTURE_PATHS)
    listed = read_job_list(
        jobs, presets=presets, expand_worlds=_expand_worlds, check_size=parse_size, version=__version__
    )
    settings = listed.settings
    options = {name: settings[name] for name in ("variant", "dtype", "prompt") if name in settings}
    check_model_options(settings.get("model", DEFAULT_MODEL), **options)
    ResultsFolder(out, (), sources=[jobs, *listed.inputs])  # raises if the results would lie among the inputs
    console.print(f"{escape(str(jobs))}: {_describe(listed)}", highlight=False)
    if check:
        return
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    with _Progress(console) as progress:
        done = run_batch(
            listed.jobs,
            out,
            setup=setup,
            settings=settings,
            base=listed.base,
            make_engine=lambda spec: _engine(spec, engine, count, address, console),
            workers=count,
            max_attempts=attempts,
            job_timeout=job_timeout,
            observer=progress.observer,
        )
    counts = done.counts
    again = f" ({done.reused} of them before this run)" if done.reused else ""
    manifest = escape(str(out / done.manifest.name))
    console.print(f"{counts['done']} done{again}, {counts['failed']} failed. See [bold]{manifest}[/].", highlight=False)
    if done.failed:
        raise typer.Exit(1)


def _expand_worlds(text: str) -> list[tuple[str, int]]:
    from worldstereo_ros.evaluation.exploration import parse_worlds

    return parse_worlds(text)


def _describe(listed: JobList) -> str:
    sources = {job.source["name"] for job in listed.jobs}
    paths = {job.path["name"] for job in listed.jobs}
    seeds = {job.seed for job in listed.jobs}
    return (
        f"{_count(len(listed.jobs), 'job')}: {_count(len(sources), 'source')} x {_count(len(paths), 'path')} x "
        f"{_count(len(seeds), 'seed')}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _engine(spec: WorkerSpec, engine: str, workers: int, address: str, console: Console) -> Engine:
    if engine == "local":
        from worldstereo_ros.batch.local_engine import LocalEngine

        return LocalEngine(spec)
    from worldstereo_ros.batch.ray_engine import RayEngine

    gpus = 1.0 if spec.settings.get("device", "cpu").startswith("cuda") else 0.0
    cluster = RayEngine(spec, workers=workers, address=address, gpus=gpus)
    if cluster.cpus < workers:
        console.print(
            f"The cluster has {cluster.cpus:g} CPU cores now, and each worker takes one: of {workers} workers some "
            "wait.",
            highlight=False,
        )
    return cluster


class _Progress:
    """A bar with the number of jobs that ended; a line for each that failed or has to run again."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns: list[Any] = [
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]  # fmt: skip
        self._bar = Progress(*columns, console=console)
        self._console = console
        self.observer = self._observer()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _observer(self) -> BatchObserver:
        from rich.markup import escape

        from worldstereo_ros.batch.jobs import FAILED, Job, JobReport
        from worldstereo_ros.batch.runner import BatchObserver

        bar, console = self._bar, self._console
        task = bar.add_task("starting", total=None)
        running, failed = set[str](), set[str]()

        def show() -> None:
            failures = f", {len(failed)} failed" if failed else ""
            bar.update(task, description=f"{len(running)} running{failures}")

        class Observer(BatchObserver):
            def found(self, total: int, reused: int, changed: int) -> None:
                bar.update(task, total=total, completed=reused)
                if reused:
                    console.print(f"{reused} of {total} jobs are done already.", highlight=False)
                if changed:
                    console.print(
                        f"[yellow]{changed} that were done run again: an input, an option or the version is another "
                        "one, or the results were changed.[/]",
                        highlight=False,
                    )

            def begin(self, job: Job) -> None:
                running.add(job.name)
                show()

            def again(self, job: Job, reason: str) -> None:
                running.discard(job.name)
                console.print(f"[yellow]{escape(job.name)} runs again: {escape(reason)}[/]", highlight=False)
                show()

            def end(self, job: Job, report: JobReport) -> None:
                running.discard(job.name)
                if report.status == FAILED:
                    failed.add(job.name)
                    console.print(f"[red]{escape(job.name)} failed[/]: {escape(report.error)}", highlight=False)
                bar.advance(task)
                show()

        return Observer()
