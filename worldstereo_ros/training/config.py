"""What a training run is: one YAML file, read into dataclasses, every key checked."""

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

STAGES = ("autoencoder", "video", "control", "memory", "distill", "finetune", "depth")
OPTIONAL = ("depth",)  # not among all stages where the configuration has none
PRECISIONS = ("no", "bf16")


class TrainingConfigError(WorldStereoError, ValueError):
    """A configuration that cannot be used; the message says which key, what came and what was expected."""


@dataclass(frozen=True)
class WorldConfig:
    """Where views come from.

    Attributes:
        cache_size: worlds in memory at a time.
        workers: processes that draw worlds beside the training; 0: worlds are drawn before it starts.
        loaders: processes that cut batches out of worlds beside the training; 0: the training does so itself.
        replay: batches that are learnt from again while the loaders have no new one ready; 0: training waits.
        shadow_prob: share of the worlds with shadows.
        kinds: how often each kind of scene comes; empty: `worlds.KIND_WEIGHTS`.
        validation: worlds that validation looks at.
    """

    cache_size: int = 400
    workers: int = 0
    loaders: int = 0
    replay: int = 0
    shadow_prob: float = 0.6
    kinds: Mapping[str, float] = field(default_factory=dict)
    validation: int = 24


@dataclass(frozen=True)
class StageConfig:
    """How one stage is trained.

    Attributes:
        minutes: how long at most; 0: until `steps`.
        steps: how many at most; 0: until `minutes`.
        batch: pictures (autoencoder, depth) or clips of a step.
        frames: keyframes of a training clip, the seed's among them.
        short_clip_prob: fraction of the batches with shorter clips, larger steps between views, and more clips.
        noise_reuse: steps that learn from the same clips, each time with other noise; saves drawing on slow machines.
        learning_rate: at its height.
        warmup: steps until it is there.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, which are the ones that are kept.
        clip_norm: of gradients.
        validate_minutes: how often to validate and to write weights.
        critic_updates: of the fake score per update of the student (distill).
        critic_learning_rate: of the fake score (distill).
        regression: weight of the true clip beside the scores (distill).
        denoising_steps: steps that the polished model takes; 0: as the distilled one.
        pixel_share: of the loss that counts channels of a latent by what they change in the picture (polish).
        covered_weight: of what the cloud covers, beside holes (polish): there, remembered pictures are shown in use.
    """

    minutes: float = 0.0
    steps: int = 0
    batch: int = 8
    frames: int = 9
    short_clip_prob: float = 0.0
    noise_reuse: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    validate_minutes: float = 4.0
    critic_updates: int = 5
    critic_learning_rate: float = 0.0
    regression: float = 0.5
    denoising_steps: int = 0
    pixel_share: float = 0.0
    covered_weight: float = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        sizes: ((height, width), ...) of the model's pictures, multiples of 16; becomes the checkpoint's `scale_map`.
        nframe: keyframes of a clip at inference.
        autoencoder: arguments of `models.image_autoencoder.ImageAutoencoder`.
        transformer: arguments of `models.WorldStereoTransformer` without its control branch.
        control: `controlnet_cfg` of the checkpoint.
        depth: arguments of `models.depth_network.DepthNetwork`.
        shift: of the noise schedule, in training and at inference.
        dmd_steps: steps of the distilled model.
        worlds: where views come from.
        stages: by name, see `STAGES`.
        device: cpu, cuda, or auto: CUDA where there is one.
        precision: no, or bf16 (accelerate's mixed precision).
        compile: torch.compile for the networks, on CUDA.
        threads: of the CPU; 0: all.
        seed: of everything that is drawn.
        max_shard_mb: largest file of weights.
    """

    sizes: tuple[tuple[int, int], ...]
    nframe: int
    autoencoder: Mapping[str, Any]
    transformer: Mapping[str, Any]
    control: Mapping[str, Any]
    depth: Mapping[str, Any] = field(default_factory=dict)
    shift: float = 3.0
    dmd_steps: int = 4
    worlds: WorldConfig = field(default_factory=WorldConfig)
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "bf16"
    compile: bool = False
    threads: int = 0
    seed: int = 0
    max_shard_mb: int = 16


def read_training_config(file: str | Path) -> TrainingConfig:
    """Reads a configuration.

    Args:
        file: a YAML or JSON file, or the name of one in `config/training/` (`cpu`, `gpu`, `smoke`).

    Raises:
        TrainingConfigError: there is no such file, or a key is unknown, missing, of another type or out of range.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        built_in = {found.stem: found for folder in _config_folders() for found in folder.glob("*.yaml")}
        if str(file) not in built_in:
            there = f", or one of {', '.join(sorted(built_in))}" if built_in else ""
            raise TrainingConfigError(f"There is no training configuration '{file}'; give a YAML file{there}.")
        path = built_in[str(file)]
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingConfigError(f"{path} could not be read as YAML: {error}.") from None
    if not isinstance(raw, dict):
        raise TrainingConfigError(f"{path} holds a {type(raw).__name__}; keys and values were expected.")
    settings = _build(TrainingConfig, raw, path.name)
    _check(settings, path.name)
    return settings


def _config_folders() -> list[Path]:
    """The folder of the built-in configurations; empty where it is missing."""
    folder = find_resource("config/training")
    return [] if folder is None else [folder]


def _check(settings: TrainingConfig, where: str) -> None:
    """Refuses numbers that no training can be done with."""
    for name, stage in settings.stages.items():
        if name not in STAGES:
            raise TrainingConfigError(f"{where}: the stage '{name}' is not known; stages are {', '.join(STAGES)}.")
        for key in ("batch", "noise_reuse", "critic_updates"):
            if getattr(stage, key) < 1:
                raise TrainingConfigError(
                    f"{where}: {key} of {name} is {getattr(stage, key)}; at least 1 was expected."
                )
        if name not in ("autoencoder", "depth") and stage.frames < 2:
            raise TrainingConfigError(
                f"{where}: frames of {name} is {stage.frames}; the seed's and one more are needed."
            )
        if not 0 <= stage.short_clip_prob <= 1:
            raise TrainingConfigError(
                f"{where}: short_clip_prob of {name} is {stage.short_clip_prob:g}; a share of 0 to 1 was expected."
            )
        if not 0 <= stage.pixel_share <= 1 or not 0 <= stage.covered_weight <= 1:
            raise TrainingConfigError(
                f"{where}: {name} has pixel_share {stage.pixel_share:g} and covered_weight {stage.covered_weight:g}; "
                "shares of 0 to 1 were expected."
            )
        if not stage.learning_rate > 0 or not 0 <= stage.ema < 1:
            raise TrainingConfigError(
                f"{where}: {name} has learning_rate {stage.learning_rate:g} and ema {stage.ema:g}; a rate above 0 and "
                "an ema of 0 to below 1 were expected."
            )
    if not settings.sizes or any(len(size) != 2 for size in settings.sizes):
        raise TrainingConfigError(f"{where}: sizes is {settings.sizes!r}; pairs of height and width were expected.")
    strange = sorted(set(settings.worlds.kinds) - set(KINDS))
    if strange:
        raise TrainingConfigError(
            f"{where}: there is no kind of scene {', '.join(strange)}; choose of {', '.join(KINDS)}."
        )
    for height, width in settings.sizes:
        if height % 16 or width % 16 or min(height, width) < 16:
            raise TrainingConfigError(f"{where}: the size {height}x{width} is no multiple of 16 in both directions.")
    if settings.precision not in PRECISIONS:
        raise TrainingConfigError(
            f"{where}: precision is '{settings.precision}'; {' or '.join(PRECISIONS)} was expected."
        )
    if settings.worlds.cache_size < 1 or settings.worlds.validation < 1:
        raise TrainingConfigError(f"{where}: worlds.cache_size and worlds.validation must be 1 or more.")


def _build(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as an instance of the dataclass `kind`."""
    if not isinstance(raw, dict):
        raise TrainingConfigError(f"{where} is {raw!r}; keys and values were expected.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise TrainingConfigError(f"{where}: {', '.join(unknown)} is not known; keys are {', '.join(sorted(hints))}.")
    try:
        return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in raw.items()})
    except TypeError as error:
        raise TrainingConfigError(f"{where}: {error}.") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TrainingConfigError(f"{where} is {value!r}; a list was expected.")
        inner = typing.get_args(kind)[0]
        return tuple(_value(inner, item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TrainingConfigError(f"{where} is {value!r}; keys and values were expected.")
        inner = typing.get_args(kind)[1]
        return {key: _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TrainingConfigError(f"{where} is {value!r}; a {kind.__name__} was expected.")
    return value


def describe(settings: TrainingConfig) -> dict[str, Any]:
    """The settings as plain values, for logs and model cards."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(settings)
