"""Writes the model card of packaged weights from the files of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from worldstereo_ros.evaluation.tables import format_value
from worldstereo_ros.models.checkpoints.hub import list_variants
from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.weights import open_weights
from worldstereo_ros.scenes.splits import SPLITS
from worldstereo_ros.training.config import STAGES, TrainingConfig
from worldstereo_ros.training.data.world_files import KIND_WEIGHTS, WALK_VIEWS, WALKS
from worldstereo_ros.training.logs import read_log, since_last_restart
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import LOGS_FOLDER, hardware
from worldstereo_ros.training.starting_weights import STARTED_FROM
from worldstereo_ros.utils.atomic_files import write_text

CARD = "README.md"
TRAINED_PARTS = {
    "autoencoder": "image autoencoder",
    "video": "backbone: video from one image",
    "control": "control branch: renders of the cloud, holes, Plücker rays",
    "memory": "camera tokens, joint attention and feed-forward layers: reference views",
    "distill": "backbone: a few denoising steps",
    "finetune": "all parts together, in those few steps",
    "refine": "refiner of imagined pixels",
    "depth": "monocular depth network",
}
KIND_NAMES = {"lot": "parking lot"}
METRIC_NAMES = {"psnr_holes": "psnr in holes", "aligned_absrel": "aligned absrel"}


def write_card(root: Path, run: Path, config: TrainingConfig, evaluation: Path | None) -> None:
    """Writes `README.md` of a checkpoint root.

    Args:
        root: the packaged checkpoint.
        run: folder of the run, for its logs.
        config: configuration of the run.
        evaluation: results of `worldstereo evaluate --json`.

    Raises:
        InputError: the evaluation cannot be read.
    """
    variants = [name.removeprefix("worldstereo-") for name in list_variants(root)]
    sizes = " and ".join(f"{height}x{width}" for height, width in config.sizes)
    text = f"""---
license: apache-2.0
library_name: worldstereo_ros
tags: [novel-view-synthesis, camera-control, world-model, robotics]
---

# A small WorldStereo

A model with the architecture and checkpoint format of WorldStereo, small enough for a robot's CPU: a transformer over
keyframe latents with a control branch (renders of a point cloud, hole masks, Plücker rays) and a memory branch
(reference views). It generates {config.nframe} keyframes of {sizes} pixels (height x width); `memory-dmd` takes
{_steps(config, run)}. It has no text encoder.

```python
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

pipeline = WorldStereoPipeline.from_pretrained("path/to/this/folder", "{variants[0]}")
```

## Files

{_files(root, variants)}

All weights are bfloat16, except norms, modulation tables and the time embedding, which are float32.

## Training data

Procedural worlds of `worldstereo_ros.scenes` only: {_kinds(config)}, each with {WALKS} walks of
{WALK_VIEWS} views. No photographs, no output of other models and no personal data. The random seeds of training worlds
are {_range("training")}, those of validation worlds {_range("validation")}; the test worlds
{_range("test")} are used for evaluation only.

## Training

{_stages(run, config)}

Steps and minutes are sums over all training periods; minutes include validation. Batch, keyframes and learning rate are
those of the last period. Validation values are those of the last validation: PSNR in dB of decoded images
(autoencoder) or of keyframes sampled in {_sampled(config)} steps, over the whole image and over holes; for depth,
the mean relative error (absrel) and the fraction of pixels within 25 % of the true depth (delta), the former also after
scale alignment.
{_start(run)}{_periods(run)}
{_hardware(run)}
Random seed {config.seed}, precision {config.precision}, noise schedule with shift {config.shift:g}. The training
guide, `docs/guides/train_small_model.md` of worldstereo_ros, describes how to resume training.
{_evaluation(evaluation)}
## Licence

Apache-2.0, as the code that made the data and the weights.
"""
    write_text(root / CARD, text)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _files(root: Path, variants: Sequence[str]) -> str:
    parts = [("base/vae", BASE_STEM, "image autoencoder")]
    if (root / "base" / "depth").is_dir():
        parts.append(("base/depth", BASE_STEM, "monocular depth network, for cameras without a depth sensor"))
    if any((root / "base" / "transformer").glob("*.safetensors")):
        parts.append(("base/transformer", BASE_STEM, "backbone of the variants without their own"))
    parts += [(f"worldstereo-{name}", "model", f"variant `{name}`") for name in variants]
    rows = []
    for folder, stem, content in parts:
        weights = open_weights(root / folder, stem)
        count = sum(info.num_elements for info in weights.tensors.values())
        size = sum(file.stat().st_size for file in weights.files)
        rows.append((f"`{folder}`", content, f"{count / 1e6:.2f} M", f"{size / 1e6:.1f}"))
    return _table(("folder", "content", "parameters", "MB"), rows)


def _kinds(config: TrainingConfig) -> str:
    weights = config.worlds.kinds or KIND_WEIGHTS
    return ", ".join(
        f"{KIND_NAMES.get(kind, kind)}s ({weight / sum(weights.values()):.0%})" for kind, weight in weights.items()
    )


def _range(split: str) -> str:
    return f"{SPLITS[split].start} to {SPLITS[split].stop - 1}"


def _sampled(config: TrainingConfig) -> str:
    from worldstereo_ros.training.stages.diffusion import VALIDATION_STEPS

    finetune = config.stages.get("finetune")
    last = (finetune.denoising_steps if finetune else 0) or config.dmd_steps
    return f"{VALIDATION_STEPS} (distill: {config.dmd_steps}, finetune: {last})"


def _steps(config: TrainingConfig, run: Path) -> str:
    """Denoising steps of the packaged memory-dmd, the fine-tuned model if there is one."""
    finetune = config.stages.get("finetune") if (run / VARIANT_OF["finetune"]).is_dir() else None
    steps = (finetune.denoising_steps if finetune else 0) or config.dmd_steps
    return "one denoising step" if steps == 1 else f"{steps} denoising steps"


def _stages(run: Path, config: TrainingConfig) -> str:
    rows = []
    for name in STAGES:
        periods = since_last_restart(read_log(run / LOGS_FOLDER / f"{name}.jsonl"))
        if not periods or name not in config.stages:
            continue
        used = {**vars(config.stages[name]), **periods[-1].header.get("settings", {})}
        metrics = next((period.metrics for period in reversed(periods) if period.metrics), {})
        rows.append(
            (
                name,
                TRAINED_PARTS[name],
                str(sum(period.steps for period in periods)),
                f"{sum(period.seconds for period in periods) / 60:.1f}",
                str(used["batch"]),
                "-" if name in ("autoencoder", "depth") else str(used["frames"]),
                f"{used['learning_rate']:g}",
                ", ".join(
                    f"{METRIC_NAMES.get(key, key)} {format_value(value, '{:.3f}')}" for key, value in metrics.items()
                )
                or "-",
            )
        )
    headings = ("stage", "trains", "steps", "minutes", "batch", "keyframes", "learning rate", "validation")
    return _table(headings, rows)


def _start(run: Path) -> str:
    if not (run / STARTED_FROM).is_file():
        return ""
    return (
        f"\nThe run started from packaged weights; their model card, `{STARTED_FROM}`, lists the training before it.\n"
    )


def _periods(run: Path) -> str:
    """A table of the training periods, if a stage has several or one has notes."""
    rows, several = [], False
    for name in STAGES:
        periods = since_last_restart(read_log(run / LOGS_FOLDER / f"{name}.jsonl"))
        several |= len(periods) > 1 or any(period.header.get("notes") for period in periods)
        previous: dict[str, Any] = {}
        for number, period in enumerate(periods, start=1):
            stage_config = period.header.get("settings", {})
            clips = stage_config.get("precomputed_clips")  # has its own column
            changes = {
                key: value
                for key, value in stage_config.items()
                if previous and previous.get(key) != value and key != "precomputed_clips"
            }
            rows.append(
                (
                    name,
                    str(number),
                    str(period.steps),
                    f"{period.seconds / 60:.1f}",
                    str(period.header.get("worlds", "-")),
                    str(clips) if clips else "-",
                    ", ".join(f"`{key}: {value}`" for key, value in changes.items()) or "-",
                    period.header.get("notes") or "-",
                )
            )
            previous = stage_config
    if not several:
        return ""
    headings = ("stage", "period", "steps", "minutes", "worlds", "precomputed clips", "changed settings", "notes")
    return f"""
Each period resumed from the weights of the one before.

{_table(headings, rows)}
"""


def _hardware(run: Path) -> str:
    """The machines in the logs."""
    machines: dict[str, None] = {}
    for name in STAGES:
        for period in since_last_restart(read_log(run / LOGS_FOLDER / f"{name}.jsonl")):
            if period.header.get("hardware"):
                machines[_machine(period.header["hardware"])] = None
    if machines:
        return f"Trained on {'; '.join(machines)}."
    import torch

    return f"The logs do not name the machine; this card was written on {_machine(hardware(torch.device('cpu')))}."


def _machine(about: dict[str, Any]) -> str:
    cpu = f"{about['cores']} cores of {about['machine']}"
    return f"{about['gpu']} with {cpu}" if about["gpu"] else f"{cpu} ({about['threads']} threads, no GPU)"


def _evaluation(file: Path | None) -> str:
    if file is None:
        return ""
    from worldstereo_ros.evaluation.report import HEADINGS, METRICS, means, read_json

    rows = read_json(file)
    # Means replace the rows of single sequences.
    groups = {(row.protocol, row.pipeline): row for row in (*rows, *means(rows))}
    sequences = len({row.sequence for row in rows})
    shown = [name for name in METRICS if any(getattr(row, name) is not None for row in groups.values())]
    forms = [(name, HEADINGS[name][1]) for name in shown]
    headings = ("protocol", "pipeline", "frames", *(HEADINGS[name][0] for name in shown))
    lines = [
        (row.protocol, row.pipeline, str(row.frames), *(format_value(getattr(row, name), form) for name, form in forms))
        for row in groups.values()
    ]
    return f"""
## Evaluation

Means over {sequences} sequences; `docs/benchmarks/evaluation.md` of worldstereo_ros describes protocols and metrics.

{_table(headings, lines)}
"""
