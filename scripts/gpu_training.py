"""The training part of a round on a GPU, in a process of its own; `gpu_round.py` starts it with a file of settings.

After every save, about once a minute, the weights so far are packaged into the output folder, beside the report and the
pictures: whatever ends the process, at most a minute is lost. Ctrl-C and SIGTERM save first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(REPOSITORY / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from gpu_place import end_with_parent  # noqa: E402
from gpu_report import read_report, training_table, write_pictures, write_report, write_tars  # noqa: E402

INTERRUPTED = 130
RESERVED_S = 15.0  # of the time, to package the last weights


def round_config(settings: dict[str, Any]) -> Any:
    """The training configuration of a round.

    Args:
        settings: `config`, `device`, `toy`, and where they are given `start` (see `start_from` of a configuration),
            `compile`, `on_device` (of the worlds), `loaders` and `batch_divisor`.
    """
    from worldstereo_ros.training.config import read_training_config

    config = read_training_config(settings["config"])
    worlds, stages = config.worlds, dict(config.stages)
    if settings["toy"]:
        worlds = replace(worlds, cache_size=4, workers=min(1, worlds.workers), loaders=min(1, worlds.loaders), replay=2)
        worlds = replace(worlds, validation=2)
        small: dict[str, Any] = {"batch": 2, "frames": 5, "validate_minutes": 0.1}
        stages = {name: replace(stage, **small) for name, stage in stages.items()}
    if "on_device" in settings and not settings["on_device"] and worlds.on_device:
        worlds = replace(worlds, on_device=False, workers=max(worlds.workers, (os.cpu_count() or 2) // 3))
    if "loaders" in settings:
        worlds = replace(worlds, loaders=settings["loaders"])
    if settings.get("batch_divisor", 1) > 1:
        divisor = settings["batch_divisor"]
        stages = {name: replace(stage, batch=max(1, stage.batch // divisor)) for name, stage in stages.items()}
    compiled = config.compile and settings.get("compile", True)
    start = settings.get("start") or config.start_from
    device = settings["device"]
    return replace(config, worlds=worlds, stages=stages, compile=compiled, start_from=start, device=device)


def step_figures(place: Any, *, compiled: bool) -> dict[str, Any]:
    """Operations, seconds and memory of one step of the stage finetune, from the weights that ship.

    Two clips are sampled and repeated to the batch of the configuration.

    Args:
        place: see `gpu_checks.Place`.
        compiled: whether the transformer is compiled.
    """
    from accelerate import Accelerator
    from full_size import matmul_rate
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from worldstereo_ros.training.data.dataset import WorldDataset
    from worldstereo_ros.training.data.world_files import render_worlds
    from worldstereo_ros.training.run_folder import RunFolder
    from worldstereo_ros.training.runner import make_stage
    from worldstereo_ros.training.starting_weights import start_run

    on_gpu = place.device.type == "cuda"
    config = round_config({"config": "gpu", "device": place.device.type, "toy": place.toy})
    stage_config = config.stages["finetune"]
    sampled = replace(stage_config, batch=2, short_clip_prob=0.0)
    worlds = replace(config.worlds, loaders=0, replay=0, cache_size=1, validation=1)
    config = replace(config, stages={"finetune": sampled}, worlds=worlds, compile=compiled, sizes=config.sizes[:1])
    run_folder, world_folder = place.folder / f"full{int(compiled)}", place.folder / "full_worlds"
    run_folder.mkdir()
    start_run(run_folder, config)
    for split in ("training", "validation"):
        render_worlds(world_folder, split, [0], config.sizes, shadow_prob=0.0, device=place.device)
    if on_gpu:
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats()
    run = RunFolder(run_folder, config, Accelerator(mixed_precision="bf16", cpu=not on_gpu))
    stage: Any = make_stage("finetune", run, *(WorldDataset(world_folder, s, 1) for s in ("training", "validation")))
    stage.start_step()
    stage.clips = _repeated(stage.clips, stage_config.batch)
    (group,) = stage.parameter_groups
    optimizer = torch.optim.AdamW(group.parameters, lr=1e-6, fused=on_gpu)

    def step() -> torch.Tensor:
        with run.accelerator.autocast():
            loss, _ = group.loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    loss = float(step())
    if loss != loss:
        raise RuntimeError("the loss is NaN")
    found: dict[str, Any] = {"batch": stage_config.batch, "frames": stage_config.frames, "loss": loss}
    if not compiled:
        # On a CPU, torch counts no attention but the plain one.
        plain = nullcontext() if on_gpu else sdpa_kernel(SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, plain:
            step()
        found["tflop_a_clip"] = counter.get_total_flops() / 1e12 / stage_config.batch
    seconds = place.seconds(step, repeats=5 if on_gpu else 1)
    found |= {"seconds_a_step": seconds, "clips_per_second": stage_config.batch / seconds}
    if "tflop_a_clip" in found:
        rate = matmul_rate(place.device, torch.bfloat16, 8192 if on_gpu else 256, 0.1)
        found["share_of_matrix_rate"] = found["tflop_a_clip"] * found["clips_per_second"] * 1e12 / rate
    if on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _repeated(clips: Any, count: int) -> Any:
    """Encoded clips, repeated to a batch of `count`."""
    have = len(clips.latents)

    def repeat(name: str, value: torch.Tensor) -> torch.Tensor:
        if name == "ref_index" or value.shape[0] != have:
            return value
        return value.repeat(-(-count // have), *(1,) * (value.ndim - 1))[:count]

    inputs = {name: repeat(name, value) for name, value in clips.inputs.items()}
    return replace(clips, latents=repeat("", clips.latents), condition=repeat("", clips.condition), inputs=inputs)


class Collector:
    """Writes the state of a run into the output folder.

    Args:
        run, out: folder of the run, and that of the output.
        config: configuration of the run.
        work: a folder for the package.
    """

    def __init__(self, run: Path, out: Path, config: Any, work: Path) -> None:
        self.run, self.out, self.config, self.package = run, out, config, work / "package"

    def __call__(self) -> None:
        """Packages the weights, and writes pictures and report. What fails is printed, and training continues."""
        from worldstereo_ros.training.packaging import package_weights

        failed = ""
        try:
            package_weights(self.run, self.package, config=self.config)
            write_tars(self.package, self.out)
        except Exception as error:
            failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            print(f"The weights could not be packaged: {failed}", flush=True)
        try:
            write_pictures(self.run / "logs", self.out)
            training = training_table(self.run / "logs", read_report(self.out))
            write_report(self.out, {"training": training, "packaging_failed": failed})
        except Exception as error:
            print(f"The report could not be written: {type(error).__name__}: {error}", flush=True)


def train_round(settings: dict[str, Any]) -> int:
    """Trains until the time is over; returns the exit status."""
    from rich.console import Console

    from worldstereo_ros.training.runner import train_stages
    from worldstereo_ros.training.trainer import TrainingInterruptedError

    config = round_config(settings)
    run, out = Path(settings["run"]), Path(settings["out"])
    collect = Collector(run, out, config, Path(settings["work"]))
    reserved = min(RESERVED_S, 0.2 * max(settings["ends_at"] - time.time(), 0))
    minutes = max((settings["ends_at"] - time.time() - reserved) / 60, 0.05)
    worlds = Path(settings["worlds"]) if settings.get("worlds") else None
    console = Console(width=160, force_terminal=False)
    print(f"training {', '.join(config.stages)} for {minutes:.1f} min, compile: {config.compile}", flush=True)
    try:
        train_stages(list(config.stages), config, run, minutes=minutes, worlds=worlds, on_save=collect, console=console)
    except (TrainingInterruptedError, KeyboardInterrupt) as error:
        print(str(error) or "Interrupted.", flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if (run / "logs").is_dir() and any((run / "logs").glob("*.png")):
            collect()
        return INTERRUPTED
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Trains as the file of settings says."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with_parent(signal.SIGTERM)
    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    try:
        return train_round(settings)
    finally:
        shutil.rmtree(Path(settings["work"]) / "package", ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
