"""The model card: what the weights are, written from the run's own files, nothing by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from worldstereo_ros.models.checkpoints.hub import list_variants
from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.weights import open_weights
from worldstereo_ros.scenes.splits import SPLITS
from worldstereo_ros.training.config import STAGES, TrainingConfig
from worldstereo_ros.training.data.world_files import KIND_WEIGHTS, WALK_VIEWS, WALKS
from worldstereo_ros.training.logs import read_rounds, since_last_restart
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import LOGS_FOLDER, hardware

CARD = "README.md"
LEARNS = {
    "autoencoder": "pictures to latents and back",
    "video": "the backbone: keyframes from one picture",
    "control": "the control branch: renders of the cloud, holes, rays",
    "memory": "camera tokens, joint attention and feed-forwards: references",
    "distill": "the same in few steps",
    "finetune": "all parts together, along those few steps",
    "depth": "metres of one picture",
}


def write_card(root: Path, run: Path, settings: TrainingConfig, evaluation: Path | None) -> None:
    """Writes `README.md` of a checkpoint root.

    Args:
        root: what was packed.
        run: folder of the run, for its logs.
        settings: of the run.
        evaluation: rows that `worldstereo evaluate --json` wrote.

    Raises:
        ValueError: the evaluation cannot be read.
    """
    variants = [name.removeprefix("worldstereo-") for name in list_variants(root)]
    sizes = " and ".join(f"{height}x{width}" for height, width in settings.sizes)
    text = f"""---
license: apache-2.0
library_name: worldstereo_ros
tags: [novel-view-synthesis, camera-control, world-model, robotics]
---

# A small WorldStereo

The architecture and the checkpoint format of WorldStereo at the size of a robot's processor: a transformer over
keyframe latents with a control branch (renders of a point cloud, hole masks, Plücker rays) and a memory branch
(reference views). It paints {settings.nframe} keyframes of {sizes} pixels (height x width); `memory-dmd` does so in
{_steps(settings, run)}. It reads no text.

```python
from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

pipeline = WorldStereoPipeline.from_pretrained("{root.name.removesuffix(".part")}", "{variants[0]}")  # this folder
```

## What is in it

{_files(root, variants)}

Everything is bfloat16 but norms, modulation tables and the time embedding, which are float32.

## What it was trained on

Worlds made by this project's `scenes/` and nothing else: {_kinds(settings)}, each walked through
{WALKS} times with {WALK_VIEWS} views. No picture that anybody took, no other model's output, no one's data.
Training worlds have seeds {_range("training")}, validation worlds {_range("validation")}; the test worlds
{_range("test")} are for evaluation alone.

## How

{_stages(run, settings)}

Minutes include validation. Validation figures are of the last validation: PSNR in dB of decoded pictures
(autoencoder), or of keyframes that were sampled in {_sampled(settings)} steps, in holes alone where it says so; for
depth, the mean relative error and the share within 25 % of the truth, in metres, and the former after scale alignment.
{_hardware(run)} Seed {settings.seed}, precision {settings.precision}, noise schedule shifted by {settings.shift:g}.
`docs/training.md` of worldstereo_ros says how to train it further.
{_evaluation(evaluation)}
## Licence

Apache-2.0, as the code that made the data and the weights.
"""
    (root / CARD).write_text(text, encoding="utf-8")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _files(root: Path, variants: Sequence[str]) -> str:
    parts = [("base/vae", BASE_STEM, "autoencoder")]
    if (root / "base" / "depth").is_dir():
        parts.append(("base/depth", BASE_STEM, "depth network, for cameras without a depth sensor"))
    if any((root / "base" / "transformer").glob("*.safetensors")):
        parts.append(("base/transformer", BASE_STEM, "backbone, which variants without their own use"))
    parts += [(f"worldstereo-{name}", "model", f"variant `{name}`") for name in variants]
    rows = []
    for folder, stem, what in parts:
        weights = open_weights(root / folder, stem)
        count = sum(info.num_elements for info in weights.tensors.values())
        size = sum(file.stat().st_size for file in weights.files)
        rows.append((f"`{folder}`", what, f"{count / 1e6:.2f} M", f"{size / 1e6:.1f}"))
    return _table(("folder", "what", "parameters", "MB"), rows)


def _kinds(settings: TrainingConfig) -> str:
    shares = settings.worlds.kinds or KIND_WEIGHTS
    return ", ".join(f"{kind}s ({share / sum(shares.values()):.0%})" for kind, share in shares.items())


def _range(split: str) -> str:
    return f"{SPLITS[split].start} to {SPLITS[split].stop - 1}"


def _sampled(settings: TrainingConfig) -> str:
    from worldstereo_ros.training.stages.diffusion import SAMPLED_STEPS

    finetune = settings.stages.get("finetune")
    last = (finetune.denoising_steps if finetune else 0) or settings.dmd_steps
    return f"{SAMPLED_STEPS} (distill: {settings.dmd_steps}, polish: {last})"


def _steps(settings: TrainingConfig, run: Path) -> str:
    """Of what is packed: the polished model's, where there is one."""
    finetune = settings.stages.get("finetune") if (run / VARIANT_OF["finetune"]).is_dir() else None
    steps = (finetune.denoising_steps if finetune else 0) or settings.dmd_steps
    return "one step" if steps == 1 else f"{steps} steps"


def _stages(run: Path, settings: TrainingConfig) -> str:
    rows = []
    for name in STAGES:
        rounds = since_last_restart(read_rounds(run / LOGS_FOLDER / f"{name}.jsonl"))
        if not rounds or name not in settings.stages:
            continue
        used = {**vars(settings.stages[name]), **rounds[-1].about.get("settings", {})}
        figures = next((one.figures for one in reversed(rounds) if one.figures), {})
        rows.append(
            (
                name,
                LEARNS[name],
                str(sum(one.steps for one in rounds)),
                f"{sum(one.seconds for one in rounds) / 60:.1f}",
                str(used["batch"]),
                "-" if name in ("autoencoder", "depth") else str(used["frames"]),
                f"{used['learning_rate']:g}",
                ", ".join(f"{key.replace('_', ' in ')} {value:.3f}" for key, value in figures.items()) or "-",
            )
        )
    headings = ("stage", "learns", "steps", "minutes", "batch", "keyframes", "learning rate", "validation")
    return _table(headings, rows)


def _hardware(run: Path) -> str:
    """Every machine that the logs name."""
    machines: dict[str, None] = {}
    for name in STAGES:
        for one in since_last_restart(read_rounds(run / LOGS_FOLDER / f"{name}.jsonl")):
            if one.about.get("hardware"):
                machines[_machine(one.about["hardware"])] = None
    if machines:
        return f"Trained on {'; '.join(machines)}."
    import torch

    return f"The logs name no machine; this card was written on {_machine(hardware(torch.device('cpu')))}."


def _machine(about: dict[str, Any]) -> str:
    cpu = f"{about['cores']} cores of {about['machine']}"
    return f"{about['gpu']} with {cpu}" if about["gpu"] else f"{cpu} ({about['threads']} threads, no GPU)"


def _evaluation(file: Path | None) -> str:
    if file is None:
        return ""
    # Evaluation needs packages that training and packing do without.
    from worldstereo_ros.evaluation.report import FIGURES, HEADINGS, means, read_json

    rows = read_json(file)
    groups = {(row.protocol, row.pipeline): row for row in (*rows, *means(rows))}  # means come last and stay
    sequences = len({row.sequence for row in rows})
    shown = [name for name in FIGURES if any(getattr(row, name) is not None for row in groups.values())]
    forms = [(name, HEADINGS[name][1]) for name in shown]
    headings = ("protocol", "pipeline", "frames", *(HEADINGS[name][0] for name in shown))
    lines = [
        (row.protocol, row.pipeline, str(row.frames), *(_figure(getattr(row, name), form) for name, form in forms))
        for row in groups.values()
    ]
    return f"""
## What it does

Means over {sequences} sequences; `docs/evaluation.md` of worldstereo_ros says what the protocols and figures are.

{_table(headings, lines)}
"""


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
