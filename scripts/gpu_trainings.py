"""All trainings that wait for a GPU, side by side on one, in the seconds given; checks beside them, benchmarks after.

    python scripts/gpu_trainings.py --out DIR --seconds 480 --check --benchmark 95   # on a GPU machine, from a checkout
    python scripts/gpu_trainings.py --out DIR --seconds 300 --only depth
    python scripts/gpu_trainings.py --out DIR --seconds 120 --toy                    # the same code at toy size

The networks are small: one of them leaves most of a GPU idle, and what they wait for is the CPU (worlds, views, loops
whose first compilation takes a minute in each process). So they run at the same time, each in a process of its own that
stops by itself. `gpu_round.py` says what has to be installed.

Every 20 seconds, DIR gets NAME.tar.gz of each training (weights, logs, pictures; at most 16 MiB) and logs.tar.gz, so
that a cut-off costs at most a minute. docs/benchmarks/gpu.md says what to do with each.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

SCRIPTS = Path(__file__).resolve().parent
REPOSITORY = SCRIPTS.parent
sys.path[:0] = [str(REPOSITORY), str(SCRIPTS)]
from gpu_report import MAX_FILE_BYTES  # noqa: E402
from gpu_round import end_group, start_process  # noqa: E402

COLLECT_PERIOD_S = 20.0
CHECKS_AFTER_S = 100.0  # when the loops have been compiled and are cached
GRACE_S = 12.0  # between the request to save and the end
MARGIN_S = 25.0  # of a training without an own clock from its start: imports, the last validation
CONFIG = REPOSITORY / "config" / "training"


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        command: gives the arguments of `worldstereo train`, from its folder, the minutes, and whether it is a toy.
        results: folders and files below its folder that come back.
    """

    command: Callable[[Path, float, bool], list[str]]
    results: tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """Trains; returns 0, or 1 if no training left a result."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="gpu_trainings.") as folder:
        work = Path(folder)
        names = options.only or list(TRAININGS)
        read_libraries()
        running = {name: start(name, work, ends, options.toy) for name in names}
        checks: subprocess.Popen[str] | None = None
        last = time.monotonic()
        try:
            while time.monotonic() < ends and any(process.poll() is None for process in running.values()):
                time.sleep(0.5)
                left = ends - time.monotonic()
                if options.check and checks is None and options.seconds - left > (0 if options.toy else CHECKS_AFTER_S):
                    checks = start_checks(work, left, options.toy)
                if time.monotonic() - last > COLLECT_PERIOD_S:
                    last = time.monotonic()
                    collect(names, work, options.out)
                    print(f"{options.seconds - left:.0f} s: {states(names, work)}", flush=True)
        finally:
            stop([*running.values(), *([checks] if checks else [])])
            collect(names, work, options.out)
        for name in names:
            print(f"{name}: exit status {running[name].poll()}, {last_line(work / f'{name}.log')}", flush=True)
        if options.benchmark:
            benchmark(work, options.benchmark, options.toy)
            collect([], work, options.out)
    return 0 if any((options.out / f"{name}.tar.gz").is_file() for name in names) else 1


def read_libraries() -> None:
    """Reads the files of the libraries once, instead of in all processes at the same time."""
    subprocess.run([sys.executable, "-c", "import cv2, scipy, torch, numba, diffusers, accelerate, transformers"])


def start(name: str, work: Path, ends: float, toy: bool) -> subprocess.Popen[str]:
    """Starts a training; its output goes to NAME.log."""
    minutes = max((ends - time.monotonic() - MARGIN_S) / 60, 0.3)
    command = TRAININGS[name].command(work / name, minutes, toy)
    return start_process(
        [sys.executable, "-m", "worldstereo_ros.cli", "train", *command],
        stdout=(work / f"{name}.log").open("w"),
        stderr=subprocess.STDOUT,
        env=environment(),
        cwd=REPOSITORY,
    )


def environment() -> dict[str, str]:
    """Of a process: the checkout is importable, and threads do not crowd out those of others."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def stage_command(stage: str, **worlds: object) -> Callable[[Path, float, bool], list[str]]:
    """The command of a stage of the small model, with the configuration `gpu` and other numbers of processes."""

    def command(folder: Path, minutes: float, toy: bool) -> list[str]:
        config = yaml.safe_load((CONFIG / ("smoke.yaml" if toy else "gpu.yaml")).read_text(encoding="utf-8"))
        if not toy:
            config["worlds"].update(worlds)
            config["compile"] = False
        config["stages"] = {stage: config["stages"][stage]}
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        return [stage, "--config", str(file), "--minutes", f"{minutes:.2f}", "--out", str(folder)]

    return command


def own_command(name: str, *options: str) -> Callable[[Path, float, bool], list[str]]:
    """The command of a training with presets of its own."""

    def command(folder: Path, minutes: float, toy: bool) -> list[str]:
        preset = "smoke" if toy else "gpu"
        return [name, *options, "--config", preset, "--minutes", f"{minutes:.2f}", "--out", str(folder)]

    return command


# The refiner waits for views, which take half a second of a core each; the others take worlds from the GPU.
TRAININGS = {
    "refine": Training(stage_command("refine", loaders=9, workers=0), ("base/refiner", "logs")),
    "depth": Training(stage_command("depth", loaders=3, workers=3, replay=96), ("base/depth", "logs")),
    "pointmaps": Training(own_command("pointmaps", "--network", "flow"), (".",)),
    "stereo": Training(own_command("stereo"), ("base/stereo", "logs")),
}


def start_checks(work: Path, seconds: float, toy: bool) -> subprocess.Popen[str]:
    """Starts the checks of `gpu_round.py`; their lines go to checks.log."""
    command = [sys.executable, str(SCRIPTS / "gpu_round.py"), "--out", str(work / "checks"), "--checks-only"]
    command += ["--check-seconds", f"{max(seconds - GRACE_S, 5):.0f}", *(["--toy"] if toy else [])]
    log = (work / "checks.log").open("w")
    return start_process(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), cwd=REPOSITORY)


def benchmark(work: Path, seconds: float, toy: bool) -> None:
    """Runs the benchmarks of the small model and of the full size one after the other; output goes to logs."""
    size = ["--size", "toy"] if toy else []
    commands = {
        "small": ["bench_small_model.py", "--device", "cuda", "--dtype", "bfloat16", "--sizes", "640x480"],
        "full": ["bench_full_size.py", "--references", "0", "4", *size],
    }
    ends = time.monotonic() + seconds
    for name, (script, *rest) in commands.items():
        command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *rest]
        command += ["--json", str(work / f"{name}.json")]
        share = (ends - time.monotonic()) * (0.4 if name == "small" else 1.0)
        with (work / f"{name}.log").open("w") as log:
            process = start_process(command, stdout=log, stderr=subprocess.STDOUT, env=environment(), cwd=REPOSITORY)
            try:
                process.wait(max(share, 1.0))
            except subprocess.TimeoutExpired:
                end_group(process, signal.SIGKILL)
        print(f"benchmark {name}: {last_line(work / f'{name}.log')}", flush=True)


def stop(processes: list[subprocess.Popen[str]]) -> None:
    """Asks processes to save, and ends them."""
    waiting = [process for process in processes if process.poll() is None]
    for process in waiting:
        process.send_signal(signal.SIGTERM)
    ends = time.monotonic() + GRACE_S
    while time.monotonic() < ends and any(process.poll() is None for process in waiting):
        time.sleep(0.2)
    for process in processes:
        end_group(process, signal.SIGKILL)  # its children too


def collect(names: list[str], work: Path, out: Path) -> None:
    """Writes what each training left so far, and all logs; a training whose files are too large is left out."""
    for name in names:
        found = [work / name / part for part in TRAININGS[name].results if (work / name / part).exists()]
        if found:
            write_tar(out / f"{name}.tar.gz", {path: Path(name) / path.relative_to(work / name) for path in found})
    logs = [*work.glob("*.log"), *work.glob("*.json"), *work.glob("checks/report.*")]
    write_tar(out / "logs.tar.gz", {path: path.relative_to(work) for path in logs})


def write_tar(target: Path, members: dict[Path, Path]) -> None:
    """Writes a compressed tar of files and folders under other names, unless it is larger than what comes back."""
    part = target.with_name(f".{target.name}.part")

    def finished(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        unfinished = (".part", ".partial")
        return None if member.name.endswith(unfinished) or "/worlds" in member.name else member

    try:
        with tarfile.open(part, "w:gz", compresslevel=1) as tar:
            for path, name in members.items():
                tar.add(path, name.as_posix(), filter=finished)
    except FileNotFoundError:  # a file was replaced meanwhile; the next time
        part.unlink(missing_ok=True)
        return
    size = part.stat().st_size
    if size > MAX_FILE_BYTES:
        print(f"{target.name} would have {size} bytes; at most {MAX_FILE_BYTES} come back. Left out.", flush=True)
        part.unlink()
        return
    part.replace(target)


def states(names: list[str], work: Path) -> str:
    """The last line of each training."""
    return " | ".join(f"{name}: {last_line(work / f'{name}.log')}" for name in names)


def last_line(log: Path) -> str:
    """The end of the last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][-110:] if lines else "-"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=480.0, help="of all trainings, from the start")
    parser.add_argument(
        "--only", nargs="+", choices=list(TRAININGS), default=[], metavar="NAME", help=", ".join(TRAININGS)
    )
    parser.add_argument("--check", action="store_true", help="run the checks of gpu_round.py beside them")
    parser.add_argument("--benchmark", type=float, default=0.0, metavar="SECONDS", help="for benchmarks afterwards")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try the script")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
