"""The commands under `worldstereo train`. Each imports what it needs, so that `--help` is quick."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from worldstereo_ros.training.config import OPTIONAL, STAGES

app = typer.Typer(
    help="Trains a small model on procedural worlds: all stages, or one after the other; packs what came of it.",
    no_args_is_help=True,
)

ABOUT = {
    "all": "All stages, one after the other; --minutes is for all of them together.",
    "autoencoder": "Stage 1: pictures to latents and back.",
    "video": "Stage 2: the backbone, which goes on from one picture.",
    "control": "Stage 3: the control branch, which follows what the cloud memory renders.",
    "memory": "Stage 4: references from the memory bank.",
    "distill": "Stage 5: the same in a few steps.",
    "finetune": "Stage 6: all parts of the distilled model together.",
    "depth": "Metres of one picture, for cameras without a depth sensor; needs no other stage.",
}

Config = Annotated[
    str, typer.Option(help="cpu, gpu, smoke or a YAML file; empty: that of the run, else what this machine can do.")
]
Folder = Annotated[Path, typer.Option(help="The run's folder; training goes on from the weights in it.")]
Minutes = Annotated[float | None, typer.Option(help="How long, drawing the first worlds included.")]
Steps = Annotated[int | None, typer.Option(help="Steps of a stage, at most.")]
Worlds = Annotated[Path | None, typer.Option(help="Where worlds are kept; several runs may share them.")]


def _command(stages: Sequence[str]) -> Callable[..., None]:
    def command(
        config: Config = "",
        out: Folder = Path("runs/small"),
        minutes: Minutes = None,
        steps: Steps = None,
        worlds: Worlds = None,
    ) -> None:
        from worldstereo_ros.cli.errors import fail
        from worldstereo_ros.training.config import read_training_config
        from worldstereo_ros.training.runner import train_stages
        from worldstereo_ros.training.trainer import TrainingError

        before = signal.signal(signal.SIGTERM, _end)
        try:
            settings = read_training_config(config or _fitting(out))
            wanted = [name for name in stages if len(stages) == 1 or name not in OPTIONAL or name in settings.stages]
            train_stages(wanted, settings, out, minutes=minutes, steps=steps, worlds=worlds)
        except (TrainingError, ValueError, OSError, RuntimeError) as error:
            raise fail(error) from None
        finally:
            signal.signal(signal.SIGTERM, before)
        typer.echo(f"{', '.join(wanted)} trained; weights, logs and pictures are in {out}")

    return command


def _end(number: int, frame: object) -> NoReturn:
    """A request to end is heard as Ctrl-C is: weights are written first."""
    raise KeyboardInterrupt


def _fitting(out: Path) -> str:
    """The configuration of a run that goes on, else the one for this machine."""
    from worldstereo_ros.training.runner import SETTINGS_FILE

    if (out / SETTINGS_FILE).is_file():
        return str(out / SETTINGS_FILE)
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


for _name, _about in ABOUT.items():
    app.command(_name, help=_about)(_command(STAGES if _name == "all" else [_name]))


@app.command()
def ship(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; one that was packed before is replaced.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="memory-dmd, memory, camera; may be repeated. Default: memory-dmd.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Rows that `worldstereo evaluate --json` measured with this run's weights.")
    ] = None,
    config: Annotated[str, typer.Option(help="Of a run whose folder lacks its settings.json.")] = "",
) -> None:
    """Packs a run: bfloat16 weights in files of at most 16 MB, 48 MB in all, checked, with a model card."""
    from worldstereo_ros.cli.errors import fail
    from worldstereo_ros.training.config import read_training_config
    from worldstereo_ros.training.packaging import package_weights as pack

    try:
        settings = read_training_config(config) if config else None
        size = pack(run, out, variants=variant or ("memory-dmd",), evaluation=evaluation, settings=settings)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    typer.echo(f"{size / 1e6:.1f} MB written to {out}")
