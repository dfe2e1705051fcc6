"""The weights that a new run starts from: bundled ones, or those of a package.

A package has the whole fine-tuned model, but not the weights of the stages before it. So a run that starts from one can
train `autoencoder`, `finetune` and `depth` further; other stages would start from random weights.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.training.config import TrainingConfig
from worldstereo_ros.training.run_folder import VARIANT_OF
from worldstereo_ros.weights.bundled import BUNDLED, bundled_folder

BUNDLED_WEIGHTS = "bundled"
STARTED_FROM = "started_from.md"  # in the run's folder: the model card of the weights that the run started from


def start_run(folder: Path, config: TrainingConfig) -> bool:
    """Copies the weights of `config.start_from` into the folder of a new run.

    Args:
        folder: folder of the run; one that has weights is left as it is.
        config: configuration of the run.

    Returns:
        Whether weights were copied.

    Raises:
        CheckpointError: there are no such weights, or they are of a model of other sizes.
    """
    if not config.start_from or (folder / "base").exists():
        return False
    bundled = config.start_from == BUNDLED_WEIGHTS
    source = bundled_folder(BUNDLED[0]) if bundled else Path(config.start_from).expanduser()
    variant = source / Path(VARIANT_OF["finetune"]).name
    for part in (source / "base" / "vae", source / "base" / "transformer", source / "base" / "scheduler", variant):
        if not part.is_dir():
            raise CheckpointError(
                f"start_from is '{config.start_from}', and {part} is missing; 'bundled' or the folder of a package "
                "(worldstereo train package) was expected."
            )
    _check(source / "base" / "vae" / "config.json", config.autoencoder)
    _check(source / "base" / "transformer" / "config.json", config.transformer)
    _check(variant / "config.json", config.control, "controlnet_cfg")
    if config.depth and (source / "base" / "depth").is_dir():
        _check(source / "base" / "depth" / "config.json", config.depth)
    # The folder `base` appears last: a run that was cut off before is started again.
    work = Path(tempfile.mkdtemp(prefix=".start.", dir=folder))
    try:
        finetuned = work / "finetuned"
        shutil.copytree(source / "base", work / "base")
        shutil.copytree(source / "base", finetuned / "base")
        shutil.copytree(variant, finetuned / variant.name)
        card = source / "README.md"
        if card.is_file():
            shutil.copyfile(card, folder / STARTED_FROM)
        shutil.rmtree(folder / "finetuned", ignore_errors=True)
        finetuned.rename(folder / "finetuned")
        (work / "base").rename(folder / "base")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _check(file: Path, wanted: Mapping[str, Any], key: str = "") -> None:
    """Raises CheckpointError if a file has other sizes than the configuration."""
    found = read_json(file)
    found = found.get(key, {}) if key else found
    for name, value in wanted.items():
        if name in found and _plain(found[name]) != _plain(value):
            raise CheckpointError(
                f"{file} has {name} {_plain(found[name])} and the configuration {_plain(value)}; use the sizes "
                "of those weights, or start_from: '' to start from random ones."
            )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
