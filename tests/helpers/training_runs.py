"""What the tests of training share: the smallest configuration, and stages of it."""

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
from worldstereo_ros.training.data.world_files import draw_worlds
from worldstereo_ros.training.run_folder import Run
from worldstereo_ros.training.runner import make_stage
from worldstereo_ros.training.trainer import Stage

SMOKE = read_training_config("smoke")
QUIET = Console(quiet=True)


def draw_smoke_worlds(folder: Path) -> None:
    """All that the configuration wants, so that no run draws any more."""
    for split, count in (("training", SMOKE.worlds.cache_size), ("validation", SMOKE.worlds.validation)):
        assert draw_worlds(folder, split, range(count), SMOKE.sizes, shadow_prob=0.0) == count


def train_all(folder: Path, worlds: Path) -> None:
    """The whole chain, by the command."""
    arguments = ["train", "all", "--config", "smoke", "--out", str(folder), "--worlds", str(worlds), "--minutes", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def toy_stage(folder: Path, worlds: Path, name: str, **changes) -> Stage:
    """A stage of the run in a folder, with changes to what the configuration says of it."""
    settings = dataclasses.replace(
        SMOKE, stages={**SMOKE.stages, name: dataclasses.replace(SMOKE.stages[name], **changes)}
    )
    torch.manual_seed(0)
    run = Run(folder, settings, Accelerator(mixed_precision="no", cpu=True))
    return make_stage(name, run, WorldDataset(worlds, "training", 4), WorldDataset(worlds, "validation", 2))


def copy_tree(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors below a folder but those of worlds, by file and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if "worlds" not in file.parts:
            found |= {f"{file.relative_to(folder)}:{name}": tensor for name, tensor in load_file(file).items()}
    assert found
    return found
