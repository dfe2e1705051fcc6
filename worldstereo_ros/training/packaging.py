"""Packs a run's weights for a package: bfloat16, small files, looked through, loaded once, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from worldstereo_ros.models.checkpoints.loading import BASE_STEM, check_finite, parameter_dtype
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError, open_weights, read_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.training.config import TrainingConfig, read_training_config
from worldstereo_ros.training.model_card import CARD, write_card
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import SETTINGS_FILE
from worldstereo_ros.utils.errors import InputError

MOST_BYTES = 48_000_000  # in all
SHARD_BYTES = 16_000_000  # of one file
VARIANTS = ("memory-dmd", "memory", "camera")


def package_weights(
    run: Path,
    out: Path,
    *,
    variants: Sequence[str] = VARIANTS[:1],
    evaluation: Path | None = None,
    settings: TrainingConfig | None = None,
    most_bytes: int = MOST_BYTES,
) -> int:
    """Packs a run as a checkpoint root, as `from_pretrained` reads it.

    Norms, modulation tables and the time embedding stay in float32, as the model keeps them when it is loaded in
    bfloat16. Of `memory-dmd` the polished weights are packed where there are any. The backbone's own weights are packed
    only where a variant leaves them to the base. `out` is replaced at once, and only by weights that could be loaded.

    Args:
        run: folder of the run.
        out: folder to write; nothing, or a checkpoint root that was packed before.
        variants: of `VARIANTS`.
        evaluation: rows that `worldstereo evaluate --json` wrote, for the card.
        settings: of the run; None: those in its folder.
        most_bytes: of all files together.

    Returns:
        Bytes of all files.

    Raises:
        CheckpointError: the run lacks weights, they are damaged, or what was packed cannot be loaded.
        TrainingConfigError: the run's settings are missing or broken.
        ValueError: a variant is not known, the files are too large, or `out` is something else.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or not variants:
        raise InputError(f"The variants {list(variants)} were asked for; some of {', '.join(VARIANTS)} were expected.")
    if out.exists() and any(out.iterdir()) and not ((out / CARD).is_file() and (out / "base").is_dir()):
        raise InputError(f"{out} is there and was not packed before; name a folder that is not there yet.")
    settings = settings or read_training_config(run / SETTINGS_FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    part, old = (out.with_name(f"{out.name}.{ending}") for ending in ("part", "old"))
    for stale in (part, old):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        _pack(run, part, variants)
        for name in variants:
            _load(part, name)
        if (part / "base" / "depth").is_dir():
            load_depth_network(part / "base" / "depth")
        write_card(part, run, settings, evaluation)
        files = [file for file in part.rglob("*") if file.is_file()]
        for file in files:
            file.chmod(0o644)  # weights are written for their owner alone
        size = sum(file.stat().st_size for file in files)
        largest = max(file.stat().st_size for file in files)
        if size > most_bytes or largest > SHARD_BYTES * 1.02:  # headers come on top
            raise InputError(
                f"{', '.join(variants)} take {size / 1e6:.2f} MB, the largest file {largest / 1e6:.2f}; at most "
                f"{most_bytes / 1e6:g} MB in all are allowed. Package fewer variants or train a smaller model."
            )
        if out.exists():
            out.rename(old)
        part.rename(out)
    finally:
        for stale in (part, old):
            shutil.rmtree(stale, ignore_errors=True)
    return size


def _pack(run: Path, part: Path, variants: Sequence[str]) -> None:
    """Weights and what describes them."""
    base = run / "base"
    _copy(base / "vae", part / "base" / "vae", BASE_STEM)
    # A variant that holds the whole backbone needs no more of the base's than its sizes.
    whole = all(name == "memory-dmd" for name in variants)
    _copy(base / "transformer", part / "base" / "transformer", None if whole else BASE_STEM)
    _copy(base / "scheduler", part / "base" / "scheduler", None, config="scheduler_config.json")
    if (base / "depth" / "config.json").is_file():
        _copy(base / "depth", part / "base" / "depth", BASE_STEM)
    for name in variants:
        finetuned = run / VARIANT_OF["finetune"]
        source = finetuned if name == "memory-dmd" and finetuned.is_dir() else run / f"worldstereo-{name}"
        _copy(source, part / f"worldstereo-{name}", "model")


def _copy(source: Path, target: Path, stem: str | None, config: str = "config.json") -> None:
    """One part: its configuration and, where it has a stem, its weights."""
    target.mkdir(parents=True)
    write_json(target / config, read_json(source / config))
    if stem is None:
        return
    weights = open_weights(source, stem)
    tensors = {}
    for name, tensor in weights.read(list(weights.tensors)):
        small = check_finite(tensor, name, weights.tensors[name]).to(parameter_dtype(name, torch.bfloat16))
        tensors[name] = check_finite(small, name, weights.tensors[name])
    save_weights(target, stem, tensors, max_shard_bytes=SHARD_BYTES)


def _load(root: Path, variant: str) -> None:
    """Loads a variant as its users will.

    Raises:
        CheckpointError: it cannot be.
    """
    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

    try:
        WorldStereoPipeline.from_pretrained(root, variant)
    except ValueError as error:
        raise CheckpointError(f"What was packed of {variant} cannot be loaded, nothing was replaced: {error}") from None
