"""What a training run is: one YAML file, read into dataclasses, every key checked."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

STAGES = ("autoencoder", "video", "control", "memory", "distill")
BUILT_IN = Path(__file__).parents[2] / "config" / "training"


class SettingsError(ValueError):
    """A configuration that cannot be used; the message says which key, what came and what was expected."""


@dataclass(frozen=True)
class WorldSettings:
    """Where views come from.

    Attributes:
        kept: worlds in memory at a time.
        fresh: worlds exchanged for new ones in a minute of training, at most; what the drawing processes manage.
        workers: processes that draw worlds beside the training; 0: worlds are drawn before it starts.
        soft_light: share of the worlds with shadows.
        validation: worlds that validation looks at.
    """

    kept: int = 400
    fresh: float = 20.0
    workers: int = 0
    soft_light: float = 0.6
    validation: int = 24


@dataclass(frozen=True)
class StageSettings:
    """How one stage is trained.

    Attributes:
        minutes: how long at most; 0: until `steps`.
        steps: how many at most; 0: until `minutes`.
        batch: pictures (autoencoder) or clips of a step.
        frames: keyframes of a training clip, the seed's among them.
        reuse: steps that learn from the same clips, each time with other noise; saves drawing on slow machines.
        learning_rate: at its height.
        warmup: steps until it is there.
        weight_decay: of AdamW.
        ema: decay of the averaged weights, which are the ones that are kept.
        clip_norm: of gradients.
        validate_minutes: how often to validate and to write weights.
        critic_updates: of the fake score per update of the student (distill).
        critic_learning_rate: of the fake score (distill).
    """

    minutes: float = 0.0
    steps: int = 0
    batch: int = 8
    frames: int = 9
    reuse: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    validate_minutes: float = 4.0
    critic_updates: int = 5
    critic_learning_rate: float = 0.0


@dataclass(frozen=True)
class TrainingSettings:
    """A whole run.

    Attributes:
        sizes: ((height, width), ...) of the model's pictures, multiples of 16; becomes the checkpoint's `scale_map`.
        nframe: keyframes of a clip at inference.
        autoencoder: arguments of `models.picture_autoencoder.PictureAutoencoder`.
        transformer: arguments of `models.WorldStereoTransformer` without its control branch.
        control: `controlnet_cfg` of the checkpoint.
        shift: of the noise schedule, in training and at inference.
        dmd_steps: steps of the distilled model.
        worlds: where views come from.
        stages: by name, see `STAGES`.
        device: cpu, cuda, or auto: CUDA where there is one.
        precision: no, bf16 or fp16 (accelerate's mixed precision).
        compile: torch.compile for the networks.
        threads: of the CPU; 0: all.
        seed: of everything that is drawn.
        max_shard_mb: largest file of weights.
    """

    sizes: tuple[tuple[int, int], ...]
    nframe: int
    autoencoder: Mapping[str, Any]
    transformer: Mapping[str, Any]
    control: Mapping[str, Any]
    shift: float = 3.0
    dmd_steps: int = 4
    worlds: WorldSettings = field(default_factory=WorldSettings)
    stages: Mapping[str, StageSettings] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "bf16"
    compile: bool = False
    threads: int = 0
    seed: int = 0
    max_shard_mb: int = 16


def read_training_settings(file: str | Path) -> TrainingSettings:
    """Reads a configuration.

    Args:
        file: a YAML file, or the name of one in `config/training/` (`cpu`, `gpu`, `smoke`).

    Raises:
        SettingsError: there is no such file, or a key is unknown, missing or of another type.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        named = BUILT_IN / f"{file}.yaml"
        if not named.is_file():
            there = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.yaml")))
            raise SettingsError(f"There is no training configuration '{file}'; give a YAML file, or one of {there}.")
        path = named
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} could not be read as YAML: {error}.") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} holds a {type(raw).__name__}; keys and values were expected.")
    settings = _build(TrainingSettings, raw, path.name)
    for name in settings.stages:
        if name not in STAGES:
            raise SettingsError(f"{path.name}: the stage '{name}' is not known; stages are {', '.join(STAGES)}.")
    for height, width in settings.sizes:
        if height % 16 or width % 16 or min(height, width) < 16:
            raise SettingsError(f"{path.name}: the size {height}x{width} is no multiple of 16 in both directions.")
    return settings


def _build(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as an instance of the dataclass `kind`."""
    if not isinstance(raw, dict):
        raise SettingsError(f"{where} is {raw!r}; keys and values were expected.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise SettingsError(f"{where}: {', '.join(unknown)} is not known; keys are {', '.join(sorted(hints))}.")
    try:
        return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in raw.items()})
    except TypeError as error:
        raise SettingsError(f"{where}: {error}.") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{where} is {value!r}; a list was expected.")
        inner = typing.get_args(kind)[0]
        return tuple(_value(inner, item, where) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise SettingsError(f"{where} is {value!r}; keys and values were expected.")
        inner = typing.get_args(kind)[1]
        return types.MappingProxyType({key: _value(inner, item, f"{where}.{key}") for key, item in value.items()})
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise SettingsError(f"{where} is {value!r}; a {kind.__name__} was expected.")
    return value


def describe(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as plain values, for logs and model cards."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(settings)
