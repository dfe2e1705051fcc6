"""Configuration of a training run: a YAML file, read into dataclasses and checked.

The values are cast by hand, in `_build` and `_cast`, so that a GPU machine needs no further package for it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from worldstereo_ros.scenes import KINDS
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.resources import find_resource

STAGES = ("autoencoder", "video", "control", "memory", "distill", "finetune", "refine", "depth")
OPTIONAL_STAGES = ("refine", "depth")  # `train all` leaves them out if the configuration does not have them
CLIP_STAGES = ("video", "control", "memory", "distill", "finetune")  # they train on encoded video clips
MEMORY_STAGES = CLIP_STAGES[1:]  # their clips have memory beside the start view
PRECISIONS = ("no", "bf16")


class TrainingConfigError(WorldStereoError, ValueError):
    """An invalid configuration; the message names the key, its value and what was expected."""


@dataclass(frozen=True)
class WorldConfig:
    """The procedural worlds that training views come from.

    Attributes:
        cache_size: number of worlds on disk and in memory.
        workers: processes that render new worlds during training; 0: all worlds are rendered before it starts.
        on_device: whether worlds are rendered on the training device, which saves CPU cores if it is a GPU.
        loaders: processes that prepare batches; 0: the training process prepares them.
        replay: number of recent batches to train on again while the loaders have no new one; 0: training waits.
        shadow_prob: fraction of the worlds with shadows.
        kinds: relative frequency of each kind of scene; empty: `world_files.KIND_WEIGHTS`.
        validation: number of validation worlds.
    """

    cache_size: int = 400
    workers: int = 0
    on_device: bool = False
    loaders: int = 0
    replay: int = 0
    shadow_prob: float = 0.6
    kinds: Mapping[str, float] = field(default_factory=dict)
    validation: int = 24


@dataclass(frozen=True)
class StageConfig:
    """How one stage is trained.

    Attributes:
        minutes: maximum training time; 0: no limit.
        steps: maximum number of steps; 0: no limit.
        batch: images (autoencoder, depth) or clips of a step.
        frames: keyframes of a training clip, the start view included.
        short_clip_prob: fraction of the batches with shorter clips, larger camera motion between views, and more clips.
        photographs_prob: fraction of the batches whose memory is two to four photographs with known poses and the depth
            that reconstruction finds, instead of observations with measured depth (control, memory, distill, finetune).
        precomputed_clips: number of clips to sample and encode before training and to keep on disk, in the run's folder
            `clips`; 0: clips are sampled and encoded during training. Not for autoencoder and depth.
        noise_reuse: consecutive steps on the same clips with new noise, which saves sampling on slow machines.
        learning_rate: maximum.
        warmup: steps of linear warm-up.
        weight_decay: weight decay of AdamW.
        ema: decay of the exponential moving average of the weights, which is what is saved.
        clip_norm: maximum norm of the gradient.
        validate_minutes: interval of validation and saving.
        precomputed_views: number of views that are imagined for training and kept in the run's folder `views`
            (refine).
        initial_views: number of them that training waits for; loader processes imagine the others while it runs. 0: all
            (refine).
        crop: height and width of the crops in pixels, a multiple of 16 (refine).
        critic_width: channels of the discriminator's finest layer (refine).
        critic_start: steps before the discriminator takes part, unless the refiner was trained before (refine).
        critic_updates: updates of the fake score per update of the student (distill).
        critic_learning_rate: learning rate of the fake score (distill) or discriminator (refine); 0: `learning_rate`.
        regression: weight of the regression to the true clip (distill).
        denoising_steps: denoising steps of the fine-tuned model (finetune); 0: `dmd_steps`.
        pixel_share: 0: all latent channels have the same weight in the loss; 1: they are weighted by their effect on
            the decoded image (finetune).
        covered_weight: weight of pixels that the cloud covers, relative to holes (finetune). At inference, covered
            pixels are composed from memory.
    """

    minutes: float = 0.0
    steps: int = 0
    batch: int = 8
    frames: int = 9
    short_clip_prob: float = 0.0
    photographs_prob: float = 0.0
    precomputed_clips: int = 0
    noise_reuse: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    validate_minutes: float = 4.0
    precomputed_views: int = 1000
    initial_views: int = 0
    crop: int = 128
    critic_width: int = 32
    critic_start: int = 300
    critic_updates: int = 5
    critic_learning_rate: float = 0.0
    regression: float = 0.5
    denoising_steps: int = 0
    pixel_share: float = 0.0
    covered_weight: float = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of a whole run.

    Attributes:
        sizes: ((height, width), ...) of the model's images, multiples of 16; the `scale_map` of the checkpoint.
        nframe: keyframes of a clip at inference.
        autoencoder: arguments of `models.autoencoders.image.ImageAutoencoder`.
        transformer: arguments of `models.WorldStereoTransformer` without its control branch.
        control: `controlnet_cfg` of the checkpoint.
        depth: arguments of `models.depth_network.DepthNetwork`.
        refiner: arguments of `models.hole_refiner.HoleRefiner`.
        shift: shift of the noise schedule, in training and at inference.
        dmd_steps: denoising steps of the distilled model.
        worlds: where training views come from.
        stages: configuration of each stage by name, see `STAGES`.
        device: cpu, cuda or auto (CUDA if available).
        precision: no or bf16 (mixed precision of accelerate).
        compile: torch.compile for the networks, on CUDA only.
        threads: CPU threads; 0: all.
        seed: random seed.
        start_from: weights of a new run: `bundled`, or the folder of a package; empty: random ones.
        max_shard_mb: maximum size of a weights file.
        log_with: a tracker of accelerate that gets all logged values too, such as tensorboard; empty: none.
        notes: text that the log and the model card repeat, for what the other keys do not say of this run.
    """

    sizes: tuple[tuple[int, int], ...]
    nframe: int
    autoencoder: Mapping[str, Any]
    transformer: Mapping[str, Any]
    control: Mapping[str, Any]
    depth: Mapping[str, Any] = field(default_factory=dict)
    refiner: Mapping[str, Any] = field(default_factory=dict)
    shift: float = 3.0
    dmd_steps: int = 4
    worlds: WorldConfig = field(default_factory=WorldConfig)
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "bf16"
    compile: bool = False
    threads: int = 0
    seed: int = 0
    start_from: str = ""
    max_shard_mb: int = 16
    log_with: str = ""
    notes: str = ""


def read_training_config(file: str | Path) -> TrainingConfig:
    """Reads a configuration.

    Args:
        file: a YAML or JSON file, or the name of one in `config/training/` (`cpu`, `gpu`, `smoke`).

    Raises:
        TrainingConfigError: the file does not exist, or a key is unknown, missing, of the wrong type or out of range.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        built_in = {found.stem: found for folder in _config_folders() for found in folder.glob("*.yaml")}
        if str(file) not in built_in:
            names = f", or one of {', '.join(sorted(built_in))}" if built_in else ""
            raise TrainingConfigError(f"There is no training configuration '{file}'; give a YAML file{names}.")
        path = built_in[str(file)]
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingConfigError(f"{path} could not be read as YAML: {error}.") from None
    if not isinstance(raw, dict):
        raise TrainingConfigError(f"{path} holds a {type(raw).__name__}; keys and values were expected.")
    config = _build(TrainingConfig, raw, path.name)
    _check(config, path.name)
    return config


def _config_folders() -> list[Path]:
    """The folder of the built-in configurations; empty if it is missing."""
    folder = find_resource("config/training")
    return [] if folder is None else [folder]


def _check(config: TrainingConfig, where: str) -> None:
    """Raises TrainingConfigError for values out of range."""
    for name, stage in config.stages.items():
        if name not in STAGES:
            raise TrainingConfigError(
                f"{where}: the stage '{name}' is unknown; one of {', '.join(STAGES)} was expected."
            )
        for key in ("batch", "noise_reuse", "critic_updates"):
            if getattr(stage, key) < 1:
                raise TrainingConfigError(
                    f"{where}: {key} of {name} is {getattr(stage, key)}; at least 1 was expected."
                )
        if name not in ("autoencoder", "refine", "depth") and stage.frames < 2:
            raise TrainingConfigError(
                f"{where}: frames of {name} is {stage.frames}; at least 2 were expected, a start view and one more."
            )
        if stage.precomputed_views < 1:
            raise TrainingConfigError(
                f"{where}: precomputed_views of {name} is {stage.precomputed_views}; at least 1 was expected."
            )
        if stage.crop < 32 or stage.crop % 16:
            raise TrainingConfigError(
                f"{where}: crop of {name} is {stage.crop}; a multiple of 16, at least 32, was expected."
            )
        for key, least in (("initial_views", 0), ("critic_start", 0), ("critic_width", 1)):
            if getattr(stage, key) < least:
                raise TrainingConfigError(
                    f"{where}: {key} of {name} is {getattr(stage, key)}; at least {least} was expected."
                )
        if stage.precomputed_clips < 0 or (stage.precomputed_clips and name not in CLIP_STAGES):
            raise TrainingConfigError(
                f"{where}: precomputed_clips of {name} is {stage.precomputed_clips}; 0, or a number of clips for "
                f"one of the stages {', '.join(CLIP_STAGES)}, was expected."
            )
        if not 0 <= stage.short_clip_prob <= 1:
            raise TrainingConfigError(
                f"{where}: short_clip_prob of {name} is {stage.short_clip_prob:g}; a fraction of 0 to 1 was expected."
            )
        if not 0 <= stage.photographs_prob <= 1 or (stage.photographs_prob and name not in MEMORY_STAGES):
            raise TrainingConfigError(
                f"{where}: photographs_prob of {name} is {stage.photographs_prob:g}; 0, or a fraction up to 1 for one "
                f"of the stages {', '.join(MEMORY_STAGES)}, was expected."
            )
        if not 0 <= stage.pixel_share <= 1 or not 0 <= stage.covered_weight <= 1:
            raise TrainingConfigError(
                f"{where}: {name} has pixel_share {stage.pixel_share:g} and covered_weight {stage.covered_weight:g}; "
                "fractions of 0 to 1 were expected."
            )
        if not stage.learning_rate > 0 or not 0 <= stage.ema < 1:
            raise TrainingConfigError(
                f"{where}: {name} has learning_rate {stage.learning_rate:g} and ema {stage.ema:g}; a rate above 0 and "
                "an ema of 0 to below 1 were expected."
            )
    if not config.sizes or any(len(size) != 2 for size in config.sizes):
        raise TrainingConfigError(f"{where}: sizes is {config.sizes!r}; pairs of height and width were expected.")
    unknown = sorted(set(config.worlds.kinds) - set(KINDS))
    if unknown:
        raise TrainingConfigError(
            f"{where}: there is no kind of scene {', '.join(unknown)}; some of {', '.join(KINDS)} were expected."
        )
    for height, width in config.sizes:
        if height % 16 or width % 16 or min(height, width) < 16:
            raise TrainingConfigError(f"{where}: the size {height}x{width} is not a multiple of 16 in both directions.")
    if config.precision not in PRECISIONS:
        raise TrainingConfigError(
            f"{where}: precision is '{config.precision}'; {' or '.join(PRECISIONS)} was expected."
        )
    if config.worlds.cache_size < 1 or config.worlds.validation < 1:
        raise TrainingConfigError(f"{where}: worlds.cache_size and worlds.validation must be 1 or more.")


def _build(kind: Any, raw: Any, where: str) -> Any:
    """Makes an instance of the dataclass `kind` from a mapping."""
    if not isinstance(raw, dict):
        raise TrainingConfigError(f"{where} is {raw!r}; keys and values were expected.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise TrainingConfigError(f"{where}: {', '.join(unknown)} is unknown; keys are {', '.join(sorted(hints))}.")
    try:
        return kind(**{key: _cast(hints[key], value, f"{where}: {key}") for key, value in raw.items()})
    except TypeError as error:
        raise TrainingConfigError(f"{where}: {error}.") from None


def _cast(kind: Any, value: Any, where: str) -> Any:
    """Checks that a value has the annotated type; lists become tuples and integers floats where annotated so."""
    if is_dataclass(kind):
        return _build(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TrainingConfigError(f"{where} is {value!r}; a list was expected.")
        inner = typing.get_args(kind)[0]
        return tuple(_cast(inner, item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TrainingConfigError(f"{where} is {value!r}; keys and values were expected.")
        inner = typing.get_args(kind)[1]
        return {key: _cast(inner, item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TrainingConfigError(f"{where} is {value!r}; a {kind.__name__} was expected.")
    return value


def describe(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists and values, for logs and model cards."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)
