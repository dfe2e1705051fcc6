"""Helpers for tests of training: the configuration `smoke`, and its stages."""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.training.config import read_training_config
from worldstereo_ros.training.data.dataset import WorldDataset
from worldstereo_ros.training.data.world_files import render_worlds
from worldstereo_ros.training.run_folder import RunFolder
from worldstereo_ros.training.runner import make_stage
from worldstereo_ros.training.trainer import Stage

SMOKE = read_training_config("smoke")
QUIET = Console(quiet=True)


def render_smoke_worlds(folder: Path) -> None:
    """Renders all worlds of the configuration, so that no run has to."""
    for split, count in (("training", SMOKE.worlds.cache_size), ("validation", SMOKE.worlds.validation)):
        assert render_worlds(folder, split, range(count), SMOKE.sizes, shadow_prob=0.0) == count


def train_all(folder: Path, worlds: Path) -> None:
    """Trains all stages with the command line."""
    arguments = ["train", "all", "--config", "smoke", "--out", str(folder), "--worlds", str(worlds), "--minutes", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def toy_stage(folder: Path, worlds: Path, name: str, **changes) -> Stage:
    """A stage of the run in a folder, with changed settings."""
    settings = dataclasses.replace(
        SMOKE, stages={**SMOKE.stages, name: dataclasses.replace(SMOKE.stages[name], **changes)}
    )
    torch.manual_seed(0)
    run = RunFolder(folder, settings, Accelerator(mixed_precision="no", cpu=True))
    return make_stage(name, run, WorldDataset(worlds, "training", 4), WorldDataset(worlds, "validation", 2))


def copy_tree(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the weights below a folder, by file and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if not {"worlds", "clips", "views"} & set(file.parts):
            found |= {f"{file.relative_to(folder)}:{name}": tensor for name, tensor in load_file(file).items()}
    assert found
    return found
