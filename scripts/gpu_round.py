"""A round on a GPU: checks every CUDA path, trains within the minutes given, saves every minute, leaves a table.

    python scripts/gpu_round.py --out DIR --minutes 9         # on a GPU machine, from a checkout, offline
    python scripts/gpu_round.py --out DIR --start PACKED      # continues from weights of an earlier round
    python scripts/gpu_round.py --out DIR --checks-only
    python scripts/gpu_round.py --out DIR --device cpu --toy  # the same code at toy size

Nothing needs to be installed but torch, numba, OpenCV, SciPy, safetensors, accelerate, transformers, rich and
diffusers, with what they need. The checks run in several processes, 90 seconds at most, so that neither a crash nor an
endless compilation stops the round; what failed is left out of the training (worlds are then rendered on the CPU, the
model is not compiled). If training fails, it is tried once more with the safest settings, from the weights saved last.

DIR gets at most eight files of 16 MiB: report.json, report.md (the tables), pictures.jpg (validation), and
weights-1.tar, weights-2.tar ... to unpack into one folder, a packaged checkpoint with its model card:

    mkdir packed && for f in DIR/weights-*.tar; do tar xf $f -C packed; done

Ctrl-C and SIGTERM during training save first.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS))
from gpu_report import format_check, page, write_report  # noqa: E402

# Each lane is a process of its own; they share the time of the checks.
LANES = (
    ("device", "rendering", "memory", "worlds on the device", "clips on the device", "small model",
     "small model, CUDA graph", "loading to the device"),
    ("training, autoencoder", "training, video", "training, control", "training, memory", "training, distill",
     "training, finetune", "training, refine", "training, depth", "loader processes"),
    ("training at full batch", "training at full batch, compiled"),
    ("14 B forward", "bfloat16", "float8", "FlexAttention", "onnxruntime", "TensorRT"),
)  # fmt: skip
CHECK_SECONDS, TOY_CHECK_SECONDS = 90.0, 300.0
MIN_SPEEDUP = 1.15  # of a compiled step, to be worth the time of compiling
MIN_RETRY_S = 45.0
USAGE_PERIOD_S = 5.0
INTERRUPTED = 130
DONE, CUT = "finished", "interrupted; the weights so far are saved"


class Lane:
    """A process that runs checks; another one continues after a crash.

    Attributes:
        pending: names of the checks that have not begun.
        running: name of the check that runs.
    """

    def __init__(self, names: list[str], options: list[str], found: queue.Queue[dict[str, Any]]) -> None:
        self.pending, self.running, self._options, self._found = list(names), "", options, found
        self._process: subprocess.Popen[str] | None = None
        self._closing = False
        self._began = time.monotonic()
        self._last_error = ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while self.pending and not self._closing:
            command = [sys.executable, str(SCRIPTS / "gpu_checks.py"), *self._options, *self.pending]
            self._process = start_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert self._process.stdout is not None
            begun = False
            for line in self._process.stdout:
                begun |= self._read(line)
            status = self._process.wait()
            if self.running and not self._closing:
                ended = f"the process ended with signal {-status}" if status < 0 else f"exit status {status}"
                self._finish("failed", f"{ended}: {self._last_error}".rstrip(": "))
            elif not begun and self.pending and not self._closing:
                self.running = self.pending.pop(0)
                self._finish("failed", f"could not start: {self._last_error}")

    def _read(self, line: str) -> bool:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._last_error = line.strip() or self._last_error
            return False
        if "begins" in message:
            self.running, self._began = message["begins"], time.monotonic()
            self.pending.remove(self.running)
        elif "status" in message:
            self.running = ""
            self._found.put(message)
        return True

    def _finish(self, status: str, message: str) -> None:
        seconds = time.monotonic() - self._began
        name, self.running = self.running, ""
        self._found.put({"name": name, "status": status, "figures": {}, "message": message, "seconds": seconds})

    @property
    def alive(self) -> bool:
        """Whether there is anything left to do."""
        return self._thread.is_alive()

    def close(self, reason: str) -> None:
        """Ends the process. The check that runs has failed, and those that have not begun are skipped."""
        self._closing = True
        if self._process is not None:
            end_group(self._process, signal.SIGKILL)
        self._thread.join(5)
        if self.running:
            self._finish("failed", reason)
        while self.pending:
            self.running, self._began = self.pending.pop(0), time.monotonic()
            self._finish("skipped", reason)


def start_process(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Starts a process in a session of its own, which Ctrl-C in a terminal does not reach; it ends with this one."""
    return subprocess.Popen(command, text=True, start_new_session=True, **options)


def end_group(process: subprocess.Popen[str], number: int) -> None:
    """Sends a signal to a process that `start_process` started, and to its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run_checks(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Runs all checks, prints a line for each, and writes them to the report; returns them by name."""
    limit = options.check_seconds or (TOY_CHECK_SECONDS if options.toy else CHECK_SECONDS)
    ends = time.monotonic() + limit
    found: queue.Queue[dict[str, Any]] = queue.Queue()
    arguments = ["--device", options.device, *(["--toy"] if options.toy else [])]
    chosen = [name for lane in LANES for name in lane if not options.check or name in options.check]
    lanes = [[name for name in lane if name in chosen] for lane in LANES]
    if options.lanes == 1:
        lanes = [chosen]
    checks: dict[str, Any] = {}

    def take(wait: float) -> None:
        try:
            check = found.get(timeout=wait)
        except queue.Empty:
            return
        checks[check["name"]] = check
        print(format_check(check), flush=True)
        write_report(out, {"checks": {name: checks[name] for name in chosen if name in checks}})

    running = [Lane(names, arguments, found) for names in lanes if names]
    try:
        while any(lane.alive for lane in running) and time.monotonic() < ends:
            take(0.1)
        reason = f"not done after {limit:.0f} s"
    except KeyboardInterrupt:
        reason = "interrupted"
        raise
    finally:
        for lane in running:
            lane.close(reason)
        while not found.empty():
            take(0.1)
    return checks


def training_settings(checks: dict[str, Any]) -> dict[str, Any]:
    """What the checks say about how to train."""

    def ok(name: str) -> bool:
        return checks.get(name, {"status": "ok"})["status"] == "ok"

    settings: dict[str, Any] = {}
    if not ok("worlds on the device"):
        settings["on_device"] = False
    if not ok("loader processes"):
        settings["loaders"] = 0
    plain, compiled = (
        checks.get(name, {}).get("figures", {}).get("clips_per_second")
        for name in ("training at full batch", "training at full batch, compiled")
    )
    compiled_check = checks.get("training at full batch, compiled")
    if compiled_check and not (compiled and (not plain or compiled > MIN_SPEEDUP * plain)):
        settings["compile"] = False
    return settings


class Usage:
    """Reads how busy the GPU is, every few seconds, as far as there is nvidia-smi."""

    QUERY = ("utilization.gpu", "memory.used", "power.draw")

    def __init__(self) -> None:
        self.rows: list[list[float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if shutil.which("nvidia-smi"):
            self._thread.start()

    def _watch(self) -> None:
        command = ["nvidia-smi", f"--query-gpu={','.join(self.QUERY)}", "--format=csv,noheader,nounits"]
        while not self._ended.wait(USAGE_PERIOD_S):
            try:
                line = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()[0]
                self.rows.append([float(number) for number in line.split(",")])
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                continue

    def close(self) -> dict[str, float]:
        """Ends; the means, and the largest memory."""
        self._ended.set()
        if not self.rows:
            return {}
        busy, memory, power = zip(*self.rows, strict=True)
        count = len(self.rows)
        return {"busy %": sum(busy) / count, "memory MiB at most": max(memory), "power W": sum(power) / count}


def train(options: argparse.Namespace, out: Path, checks: dict[str, Any], ends_at: float) -> int:
    """Trains in a process of its own, once more if it fails; returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="gpu_round.") as work:
        settings: dict[str, Any] = {
            "config": options.config,
            "device": options.device,
            "toy": options.toy,
            "start": options.start,
            "worlds": options.worlds,
            "run": options.run or str(Path(work) / "run"),
            "out": str(out),
            "work": work,
            "ends_at": ends_at,
            "threads": options.threads,
            **training_settings(checks),
        }
        status = _train_once(settings)
        left = ends_at - time.time()
        if status not in (0, INTERRUPTED) and left > MIN_RETRY_S:
            print(f"Training failed with status {status}; once more with the safest settings.", flush=True)
            status = _train_once(settings | {"compile": False, "on_device": False, "batch_divisor": 2})
        return status


def _train_once(settings: dict[str, Any]) -> int:
    file = Path(settings["work"]) / "settings.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    child = start_process([sys.executable, str(SCRIPTS / "gpu_training.py"), str(file)])
    interrupted = False
    while True:
        try:
            status = child.wait()
            return INTERRUPTED if interrupted else status
        except KeyboardInterrupt:
            print("Interrupted: saving the weights.", flush=True)
            interrupted = True
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Runs a round; returns the exit status: 0, 1 for a failed check with --checks-only, 130 if it was interrupted."""
    begin = time.time()
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    present = sorted(file.name for file in out.iterdir())
    if present:
        print(f"{out} has files ({present[0]}); give an empty folder, so that nothing is lost.", file=sys.stderr)
        return 2
    write_report(out, {"state": "began"})
    checks: dict[str, Any] = {}
    status, usage = 0, Usage()
    try:
        if not options.no_checks:
            checks = run_checks(options, out)
        if not options.checks_only:
            write_report(out, {"state": "training"})
            status = train(options, out, checks, begin + 60 * options.minutes)
    except KeyboardInterrupt:
        status = INTERRUPTED
    state = {0: DONE, INTERRUPTED: CUT}.get(status, f"training failed with status {status}")
    report = write_report(out, {"state": state, "minutes": (time.time() - begin) / 60, "gpu_usage": usage.close()})
    print(page(report))
    if status == 0 and options.checks_only and any(check["status"] == "failed" for check in checks.values()):
        return 1
    return status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, checks included")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--config", default="gpu", help="training configuration")
    parser.add_argument(
        "--start", default="", help="folder of packaged weights to continue from; default: the bundled ones"
    )
    parser.add_argument("--worlds", default="", help="folder of rendered worlds; default: a temporary one")
    parser.add_argument("--run", default="", help="folder of the run, kept; default: a temporary one")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the training; 0: the default of torch")
    parser.add_argument("--lanes", type=int, choices=[1, len(LANES)], default=len(LANES), help="processes of checks")
    parser.add_argument("--check", action="append", default=[], metavar="NAME", help="only this check; repeatable")
    parser.add_argument("--check-seconds", type=float, default=0.0, help="for all checks; 0: 90, of a toy 300")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--checks-only", action="store_true")
    choice.add_argument("--no-checks", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
