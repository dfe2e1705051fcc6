"""How much faster two workers of `worldstereo batch` are than one, with one thread each.

    python benchmarks/bench_batch.py [--jobs 12] [--views 8] [--size 320x240] [--model small] [--workers 2]

Every job observes three views of the same procedural world and imagines a path of its own seed. Printed are the seconds
from the first job's start to the last one's end, those of the whole run with the start of the processes and the loading
of the model, and the ratios. The machine must be idle: with other programs on its cores the ratio says nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from worldstereo_ros import __version__
from worldstereo_ros.batch import Job, run_batch
from worldstereo_ros.batch.job_list import read_job_list
from worldstereo_ros.batch.jobs import JobReport
from worldstereo_ros.batch.local_engine import LocalEngine
from worldstereo_ros.batch.runner import BatchObserver
from worldstereo_ros.cli.batch_jobs import setup
from worldstereo_ros.cli.sources import parse_size

LIST = """
settings: {{model: {model}}}
sources: [{{worlds: "demo:0:1", observations: 3, size: {size}}}]
paths: [{{path: orbit, views: {views}}}]
seeds: {seeds}
"""


class Clock(BatchObserver):
    """Times of the first start and the last end."""

    def __init__(self) -> None:
        self.first, self.last = float("inf"), 0.0

    def begin(self, job: Job) -> None:
        """Notes the first start."""
        self.first = min(self.first, time.perf_counter())

    def end(self, job: Job, report: JobReport) -> None:
        """Notes the last end."""
        self.last = time.perf_counter()


def run(workers: int, folder: Path, listed: Any) -> tuple[float, float, dict[str, str]]:
    """(seconds of the jobs, seconds of the whole run, checksums by job) with so many workers."""
    clock, start = Clock(), time.perf_counter()
    done = run_batch(
        listed.jobs,
        folder / f"out{workers}",
        setup=setup,
        settings=listed.settings,
        base=listed.base,
        make_engine=LocalEngine,
        workers=workers,
        observer=clock,
    )
    if done.failed:
        raise SystemExit(f"Jobs failed: {done.failed}")
    sums = {job.name: (folder / f"out{workers}" / job.name / "SHA256SUMS").read_text() for job in listed.jobs}
    return clock.last - clock.first, time.perf_counter() - start, sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--model", default="small")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    text = LIST.format(model=options.model, size=options.size, views=options.views, seeds=list(range(options.jobs)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jobs.yaml").write_text(text)
        listed = read_job_list(
            folder / "jobs.yaml",
            presets=("orbit",),
            expand_worlds=lambda _: [("demo", 0)],
            check_size=parse_size,
            version=__version__,
        )
        print(f"{options.jobs} jobs, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
        one, one_whole, first = run(1, folder, listed)
        print(f"1 worker: {one:.1f} s of jobs, {one_whole:.1f} s with the start", flush=True)
        many, many_whole, second = run(options.workers, folder, listed)
        print(f"{options.workers} workers: {many:.1f} s of jobs, {many_whole:.1f} s with the start")
        print(f"ratio {one / many:.2f} (with the start {one_whole / many_whole:.2f}); equal results: {first == second}")


if __name__ == "__main__":
    main()
