"""Packages the weights of a run: bfloat16, small files, checked by loading them, with a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from worldstereo_ros.models.checkpoints.loading import BASE_STEM
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.training.config import TrainingConfig, read_training_config
from worldstereo_ros.training.model_card import CARD, write_card
from worldstereo_ros.training.network_packaging import (
    SHARD_BYTES,
    copy_in_bfloat16,
    find_networks,
    replace_folder,
    write_network,
)
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.training.runner import SETTINGS_FILE
from worldstereo_ros.training.starting_weights import STARTED_FROM
from worldstereo_ros.utils.errors import InputError

MAX_BYTES = 48_000_000  # of all files together, but for networks with limits of their own
VARIANTS = ("memory-dmd", "memory", "camera")


def package_weights(
    run: Path,
    out: Path,
    *,
    variants: Sequence[str] = VARIANTS[:1],
    evaluation: Path | None = None,
    config: TrainingConfig | None = None,
    max_bytes: int = MAX_BYTES,
) -> int:
    """Packages a run as a checkpoint root for `from_pretrained`.

    Norms, modulation tables and the time embedding stay in float32, as in a model that is loaded in bfloat16. The
    weights of `memory-dmd` are the fine-tuned ones, if there are any. The backbone of the base is included only if a
    variant needs it. Networks of stereo and point maps (`network_packaging`) are those of the run, or else those of an
    earlier package in `out`. `out` is replaced as a whole, after the new files have been loaded successfully.

    Args:
        run: folder of the run.
        out: output folder; it must not exist, be empty or have an earlier package.
        variants: some of `VARIANTS`.
        evaluation: results of `worldstereo evaluate --json`, for the model card.
        config: configuration of the run; None: that in its folder.
        max_bytes: maximum size of all files together.

    Returns:
        Size of all files in bytes.

    Raises:
        CheckpointError: weights of the run are missing or damaged, or the package cannot be loaded.
        TrainingConfigError: the configuration of the run is missing or invalid.
        InputError: a variant is unknown, the files are too large, or `out` has other files.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or not variants:
        raise InputError(f"The variants {list(variants)} were given; some of {', '.join(VARIANTS)} were expected.")
    if out.exists() and any(out.iterdir()) and not ((out / CARD).is_file() and (out / "base").is_dir()):
        raise InputError(f"{out} has files and is not an earlier package; give a folder that does not exist yet.")
    config = config or read_training_config(run / SETTINGS_FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A folder of an unused name: one beside it that is called `out.old` is not ours to remove.
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    part, old = work / "new", work / "old"
    try:
        _write_package(run, part, variants)
        for name in variants:
            _check_loading(part, name)
        if (part / "base" / "depth").is_dir():
            load_depth_network(part / "base" / "depth")
        write_card(part, run, config, evaluation)
        if (run / STARTED_FROM).is_file():
            shutil.copyfile(run / STARTED_FROM, part / STARTED_FROM)
        separate = _write_networks(run, part, out)
        files = [file for file in part.rglob("*") if file.is_file()]
        for file in files:
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        size = sum(file.stat().st_size for file in files)
        largest = max(file.stat().st_size for file in files)
        if size - separate > max_bytes or largest > SHARD_BYTES * 1.02:  # headers are not counted in shards
            raise InputError(
                f"{', '.join(variants)} take {(size - separate) / 1e6:.2f} MB, the largest file "
                f"{largest / 1e6:.2f}; at most {max_bytes / 1e6:g} MB in all are allowed. Package fewer variants or "
                "train a smaller model."
            )
        replace_folder(part, out, old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return size


def _write_package(run: Path, part: Path, variants: Sequence[str]) -> None:
    """Writes weights and configurations."""
    base = run / "base"
    copy_in_bfloat16(base / "vae", part / "base" / "vae", BASE_STEM)
    # Variants with the whole backbone need the configuration of the base's alone.
    self_contained = all(name == "memory-dmd" for name in variants)
    copy_in_bfloat16(base / "transformer", part / "base" / "transformer", None if self_contained else BASE_STEM)
    copy_in_bfloat16(base / "scheduler", part / "base" / "scheduler", None, config="scheduler_config.json")
    if (base / "depth" / "config.json").is_file():
        copy_in_bfloat16(base / "depth", part / "base" / "depth", BASE_STEM)
    if (base / "refiner" / "config.json").is_file():
        copy_in_bfloat16(base / "refiner", part / "base" / "refiner", BASE_STEM)
    for name in variants:
        finetuned = run / VARIANT_OF["finetune"]
        source = finetuned if name == "memory-dmd" and finetuned.is_dir() else run / f"worldstereo-{name}"
        copy_in_bfloat16(source, part / f"worldstereo-{name}", "model")


def _write_networks(run: Path, part: Path, earlier: Path) -> int:
    """Writes the networks of stereo and point maps of the run or of the earlier package; their size in bytes."""
    found = {**find_networks(earlier), **find_networks(run)}
    return sum(write_network(name, folder, part / "base" / name, part) for name, folder in found.items())


def _check_loading(root: Path, variant: str) -> None:
    """Loads a variant with `from_pretrained`. Raises CheckpointError."""
    from worldstereo_ros.pipelines.worldstereo.pipeline import WorldStereoPipeline

    try:
        WorldStereoPipeline.from_pretrained(root, variant)
    except ValueError as error:
        raise CheckpointError(
            f"The packaged variant {variant} cannot be loaded, nothing was replaced: {error}"
        ) from None
