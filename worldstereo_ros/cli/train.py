"""`worldstereo train`: the stages of the small model, one sub-command each, and the packaging of a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from worldstereo_ros.cli.options import INPUT, OUTPUT

app = typer.Typer(
    help="Train a small model on procedural worlds: all stages or a single one; package the result.",
    no_args_is_help=True,
)

ALL = "all"
# Names of stages: those of `training.config.STAGES`, which is too heavy to import here. A test compares them.
COMMANDS = {
    ALL: "Train all stages, one after the other; --minutes is for all of them together.",
    "autoencoder": "Train stage 1: the image autoencoder.",
    "video": "Train stage 2: the video backbone, which continues from one image.",
    "control": "Train stage 3: the control branch, which follows renders of the cloud memory.",
    "memory": "Train stage 4: cross-attention to reference views from the view bank.",
    "distill": "Train stage 5: distillation to a few denoising steps.",
    "finetune": "Train stage 6: all parts of the distilled model together.",
    "refine": "Train stage 7: the refiner, which gives imagined pixels sharp borders and details.",
    "depth": "Train the monocular depth network, for cameras without a depth sensor; independent of the other stages.",
}
_BUDGET = "Budget"

Config = Annotated[
    str,
    typer.Option(
        metavar="CONFIG",
        help="Training configuration: cpu, gpu, smoke, or a YAML file.",
        show_default="that of the run, else gpu with CUDA and cpu without",
        rich_help_panel=INPUT,
    ),
]
Worlds = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of rendered worlds; several runs may share it.",
        show_default="in the run folder",
        rich_help_panel=INPUT,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        help="Maximum duration, including rendering the first worlds.",
        show_default="that of the configuration",
        rich_help_panel=_BUDGET,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Maximum number of steps of each stage.",
        show_default="that of the configuration",
        rich_help_panel=_BUDGET,
    ),
]
RunFolder = Annotated[
    Path,
    typer.Option(
        metavar="RUN",
        help="Run folder for weights, logs and images; training resumes from the weights in it.",
        rich_help_panel=OUTPUT,
    ),
]


def _train_command(name: str) -> Callable[..., None]:
    """The command that trains the stage of this name, or all stages."""

    def command(
        config: Config = "",
        worlds: Worlds = None,
        minutes: Minutes = None,
        steps: Steps = None,
        out: RunFolder = Path("runs/small"),
    ) -> None:
        from worldstereo_ros.training.config import OPTIONAL_STAGES, STAGES, read_training_config
        from worldstereo_ros.training.runner import train_stages

        previous_handler = signal.signal(signal.SIGTERM, _interrupt)
        try:
            training_config = read_training_config(config or _default_config(out))
            if name == ALL:
                # A run that starts from trained weights need not train all of them further.
                optional = STAGES if training_config.start_from else OPTIONAL_STAGES
                stages = [stage for stage in STAGES if stage not in optional or stage in training_config.stages]
            else:
                stages = [name]
            train_stages(stages, training_config, out, minutes=minutes, steps=steps, worlds=worlds)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
        typer.echo(f"{', '.join(stages)} trained; weights, logs and images are in {out}")

    return command


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    """Handles SIGTERM as Ctrl-C, so that weights are written before the process ends."""
    raise KeyboardInterrupt


def _default_config(run: Path) -> str:
    """The configuration of a run to resume, else the one for this machine."""
    from worldstereo_ros.training.runner import SETTINGS_FILE

    if (run / SETTINGS_FILE).is_file():
        return str(run / SETTINGS_FILE)
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_train_command(_name))


@app.command()
def anyrecon(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="Folder with Wan 2.1's own files (see docs/guides/anyrecon.md).")
    ],
    phase: Annotated[
        str,
        typer.Option(
            metavar="PHASE",
            help="dense, sparse (from the dense LoRA) or distill (to four steps, from one of the two).",
            rich_help_panel=INPUT,
        ),
    ] = "dense",
    size: Annotated[
        tuple[int, int],
        typer.Option(metavar="HEIGHT WIDTH", help="Size of the images in pixels.", rich_help_panel=INPUT),
    ] = (512, 896),
    frames: Annotated[
        int, typer.Option(metavar="N", help="Frames of a clip, captures among them.", rich_help_panel=INPUT)
    ] = 40,
    rank: Annotated[int, typer.Option(metavar="N", help="Rank of the LoRA.", rich_help_panel=INPUT)] = 32,
    number_of_worlds: Annotated[
        int,
        typer.Option("--number-of-worlds", metavar="N", help="Worlds to render and train on.", rich_help_panel=INPUT),
    ] = 400,
    worlds: Worlds = None,
    minutes: Minutes = None,
    steps: Steps = None,
    out: RunFolder = Path("runs/anyrecon"),
) -> None:
    """Train a LoRA for AnyRecon on procedural worlds, one phase at a time; needs the files of its base."""
    from dataclasses import replace

    from worldstereo_ros.training.config import WorldConfig
    from worldstereo_ros.training.stages.anyrecon import PAPER, AnyReconTraining, train_anyrecon

    settings = AnyReconTraining(
        stage=replace(PAPER, frames=frames),
        size=size,
        rank=rank,
        worlds=WorldConfig(cache_size=number_of_worlds, validation=min(24, number_of_worlds)),
    )
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        train_anyrecon(base, out, phase, settings, worlds=worlds, minutes=minutes, steps=steps)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    typer.echo(f"{phase} trained; the LoRA is {out / f'{phase}.safetensors'}")


@app.command()
def stereo(
    video: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="Also train on a mono video, image folder or sequence: its frames are rendered to the other eye and "
            "back by their depth.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            metavar="CONFIG",
            help="cpu, gpu or smoke.",
            show_default="gpu with CUDA, else cpu",
            rich_help_panel=INPUT,
        ),
    ] = "",
    minutes: Minutes = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Maximum number of steps of each phase.", rich_help_panel=_BUDGET),
    ] = None,
    out: RunFolder = Path("runs/stereo"),
) -> None:
    """Train the network that paints what neither eye of a stereo pair has seen: frames, time, one step."""
    from worldstereo_ros.training.stereo_training import CONFIGS, process_start, train_stereo
    from worldstereo_ros.utils.errors import InputError

    begin = process_start()
    if not config:
        import torch

        config = "gpu" if torch.cuda.is_available() else "cpu"
    if config not in CONFIGS:
        raise InputError(f"--config is '{config}'; one of {', '.join(CONFIGS)} was expected.")
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        train_stereo(
            out, CONFIGS[config], minutes=minutes, steps=steps, video=video, begin=begin,
            device="" if config == "gpu" else "cpu",
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    typer.echo(f"stereo trained; weights, logs and images are in {out}")


@app.command()
def pointmaps(
    config: Annotated[
        str,
        typer.Option(
            metavar="CONFIG",
            help="Preset: cpu, gpu or smoke; with --base gpu or smoke.",
            show_default="gpu with CUDA and cpu without",
            rich_help_panel=INPUT,
        ),
    ] = "",
    network: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="refiner (changes the depth of tracks and solve) or flow (the published form: a "
            "transformer over latents, which also works without a prior).",
            rich_help_panel=INPUT,
        ),
    ] = "refiner",
    prior: Annotated[
        str,
        typer.Option(
            metavar="PRIOR",
            help="With flow: tracks (refines a prior, and also works without one), or none (a smaller network that "
            "never sees one).",
            rich_help_panel=INPUT,
        ),
    ] = "tracks",
    base: Annotated[
        str,
        typer.Option(
            metavar="open-sora:FOLDER",
            help="Fine-tune Open-Sora 1.2 at its own size; its transformer and vae are in FOLDER.",
            show_default="the small network",
            rich_help_panel=INPUT,
        ),
    ] = "",
    code_error: Annotated[
        str,
        typer.Option(
            metavar="ERROR",
            help="With flow: error of the point-map autoencoder, huber (as published), l1 or l2.",
            rich_help_panel=INPUT,
        ),
    ] = "huber",
    minutes: Minutes = None,
    steps: Steps = None,
    out: RunFolder = Path("runs/pointmaps"),
) -> None:
    """Train the network of point maps on procedural worlds with moving things."""
    from dataclasses import replace

    from worldstereo_ros.utils.errors import InputError

    if network not in ("refiner", "flow"):
        raise InputError(f"--network is '{network}'; refiner or flow was expected.")
    if prior not in ("tracks", "none"):
        raise InputError(f"--prior is '{prior}'; tracks or none was expected.")
    if prior == "none" and (network != "flow" or base):
        raise InputError("--prior none is for the small network of --network flow.")
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if base:
            from worldstereo_ros.training.open_sora_settings import open_sora_preset
            from worldstereo_ros.training.stages.open_sora_pointmaps import train_open_sora

            large = replace(open_sora_preset(config), code_error=code_error)
            train_open_sora(
                replace(large, minutes=large.minutes if minutes is None else minutes), base, out, steps=steps
            )
        elif network == "refiner":
            from worldstereo_ros.training.stages.pointmap_refiner import refiner_preset, train_refiner

            refiner = refiner_preset(config)
            train_refiner(replace(refiner, minutes=refiner.minutes if minutes is None else minutes), out, steps=steps)
        else:
            from worldstereo_ros.training.pointmap_settings import preset
            from worldstereo_ros.training.stages.pointmaps import train_pointmaps
            from worldstereo_ros.training.stages.pointmaps_without_prior import train_without_prior

            small = replace(preset(config, prior=prior == "tracks"), code_error=code_error)
            train = train_pointmaps if prior == "tracks" else train_without_prior
            train(replace(small, minutes=small.minutes if minutes is None else minutes), out, steps=steps)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    typer.echo(f"point maps trained; weights and a log are in {out}")


@app.command()
def package(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder to package.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Output folder; an earlier package in it is replaced.",
            rich_help_panel=OUTPUT,
        ),
    ],
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIANT",
            help="Variant to include: memory-dmd, memory or camera. Repeatable.",
            show_default="memory-dmd",
            rich_help_panel=INPUT,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results for the model card, as written by `worldstereo evaluate --json` for this run.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            metavar="CONFIG",
            help="Training configuration of a run folder without settings.json.",
            show_default="that of the run",
            rich_help_panel=INPUT,
        ),
    ] = "",
) -> None:
    """Package a run: bfloat16 weights in small files, checked, with a model card.

    The networks of `train stereo` and `train pointmaps` are added to a package, or replace those in it.
    """
    from worldstereo_ros.training.config import read_training_config
    from worldstereo_ros.training.network_packaging import find_networks, package_networks
    from worldstereo_ros.training.packaging import package_weights
    from worldstereo_ros.training.runner import SETTINGS_FILE
    from worldstereo_ros.utils.errors import InputError

    if not config and not (run / SETTINGS_FILE).is_file() and find_networks(run):
        if variant or evaluation:
            raise InputError("A run of stereo or point maps has neither variants nor a model card; remove the options.")
        for name, count in package_networks(run, out).items():
            typer.echo(f"wrote {count / 1e6:.1f} MB to {out / 'base' / name}")
        return
    size = package_weights(
        run,
        out,
        variants=variant or ("memory-dmd",),
        evaluation=evaluation,
        config=read_training_config(config) if config else None,
    )
    typer.echo(f"wrote {size / 1e6:.1f} MB to {out}")
