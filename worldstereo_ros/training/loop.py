"""The loop that all stages share: time, learning rate, averaged weights, validation, logs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from worldstereo_ros.training.settings import StageSettings

MOST_FAILURES = 10  # steps in a row whose numbers are not finite, before training gives up
FINAL_RATE = 0.05  # of the learning rate, at the end
LOGGED_EVERY = 20  # steps


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do. The weights written last are whole."""


@dataclass
class Player:
    """Parameters with an optimiser of their own, and what they are trained on.

    Attributes:
        name: for logs.
        parameters: what is trained.
        loss: makes the loss of a step, and figures for the log.
        learning_rate: at its height.
        updates: per step.
        averaged: whether the averaged weights are the ones to keep.
    """

    name: str
    parameters: list[torch.nn.Parameter]
    loss: Callable[[], tuple[torch.Tensor, dict[str, float]]]
    learning_rate: float
    updates: int = 1
    averaged: bool = True
    optimizer: Any = field(default=None, repr=False)
    ema: Any = field(default=None, repr=False)


class Stage(Protocol):
    """One of the five stages."""

    name: str
    settings: StageSettings
    players: list[Player]

    def start_step(self) -> None:
        """Draws what the step learns from."""

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Figures, with "loss" among them, and a picture (H, W, 3) uint8 to look at."""

    def save(self) -> None:
        """Writes the weights."""


def train(
    stage: Stage,
    accelerator: Accelerator,
    log_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    between: Callable[[], None] = lambda: None,
    console: Console | None = None,
) -> dict[str, float]:
    """Trains a stage until its time or its steps are over, then writes its weights.

    Args:
        stage: what is trained.
        accelerator: devices and mixed precision.
        log_folder: gets `<stage>.jsonl` and `<stage>.png`.
        minutes, steps: instead of those of the stage's settings.
        between: called about once a minute, to exchange worlds.
        console: where progress is shown.

    Returns:
        The last validation's figures.

    Raises:
        TrainingError: the numbers are not finite any more.
        ValueError: neither time nor steps are limited.
    """
    settings = stage.settings
    minutes = settings.minutes if minutes is None else minutes
    most = settings.steps if steps is None else steps
    if minutes <= 0 and most <= 0:
        raise ValueError(f"The stage {stage.name} has neither minutes nor steps; give one of them.")
    console = console or Console()
    log_folder.mkdir(parents=True, exist_ok=True)
    log = log_folder / f"{stage.name}.jsonl"
    for player in stage.players:
        player.optimizer = torch.optim.AdamW(
            player.parameters,
            lr=player.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=player.parameters[0].device.type == "cuda",
        )
        player.optimizer = accelerator.prepare(player.optimizer)
        if player.averaged:
            player.ema = EMAModel(player.parameters, decay=settings.ema, use_ema_warmup=True, power=0.75)
    begin = last_validation = last_between = time.monotonic()
    recent: dict[str, list[float]] = {}
    failures = step = 0
    figures = _validate(stage, log, step, 0.0)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage.name, total=1.0, figures=_short(figures))
        while True:
            now = time.monotonic()
            done = max((now - begin) / 60 / minutes if minutes > 0 else 0.0, step / most if most > 0 else 0.0)
            if done >= 1:
                break
            factor = min(1.0, (step + 1) / max(settings.warmup, 1)) * _decay(done)
            stage.start_step()
            fine = True
            for player in stage.players:
                for _ in range(player.updates):
                    fine &= _update(player, accelerator, settings.clip_norm, factor, recent)
            failures = 0 if fine else failures + 1
            if failures >= MOST_FAILURES:
                raise TrainingError(
                    f"{stage.name}: {failures} steps in a row gave numbers that are not finite, at step {step}; lower "
                    f"its learning_rate ({settings.learning_rate:g}) or train without mixed precision. The weights "
                    "written last are whole."
                )
            step += 1
            bar.update(task, completed=done)
            if step % LOGGED_EVERY == 0:
                means = {name: float(np.mean(values)) for name, values in recent.items()}
                recent.clear()
                _write(log, {"step": step, "seconds": round(now - begin, 1), "rate": round(factor, 4), **means})
            if now - last_between > 60:
                between()
                last_between = now
            if settings.validate_minutes > 0 and now - last_validation > 60 * settings.validate_minutes:
                figures = _averaged(stage, log, step, now - begin)
                bar.update(task, figures=_short(figures))
                last_validation = time.monotonic()
    figures = _averaged(stage, log, step, time.monotonic() - begin)
    for player in stage.players:
        if player.ema is not None:
            player.ema.copy_to(player.parameters)
    console.print(f"[bold]{stage.name}[/]: {step} steps in {(time.monotonic() - begin) / 60:.1f} min, {_short(figures)}")
    return figures


def _update(player: Player, accelerator: Accelerator, norm: float, factor: float, recent: dict[str, list[float]]) -> bool:
    """One update; False where its numbers are not finite, and nothing was changed."""
    for group in player.optimizer.param_groups:
        group["lr"] = player.learning_rate * factor
    with accelerator.autocast():
        loss, figures = player.loss()
    player.optimizer.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(loss)):
        return False
    accelerator.backward(loss)
    length = torch.nn.utils.clip_grad_norm_(player.parameters, norm)
    if not bool(torch.isfinite(length)):
        player.optimizer.zero_grad(set_to_none=True)
        return False
    player.optimizer.step()
    if player.ema is not None:
        player.ema.step(player.parameters)
    for name, value in {f"{player.name}_loss": float(loss.detach()), f"{player.name}_gradient": float(length), **figures}.items():
        recent.setdefault(name, []).append(value)
    return True


def _decay(done: float) -> float:
    """Flat for a third of the run, then half a cosine down to `FINAL_RATE`."""
    if done < 1 / 3:
        return 1.0
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * (done - 1 / 3) * 1.5))


def _averaged(stage: Stage, log: Path, step: int, seconds: float) -> dict[str, float]:
    """Validates and saves the averaged weights, then goes back to the ones in training."""
    players = [player for player in stage.players if player.ema is not None]
    for player in players:
        player.ema.store(player.parameters)
        player.ema.copy_to(player.parameters)
    try:
        figures = _validate(stage, log, step, seconds)
        stage.save()
    finally:
        for player in players:
            player.ema.restore(player.parameters)
    return figures


@torch.no_grad()
def _validate(stage: Stage, log: Path, step: int, seconds: float) -> dict[str, float]:
    figures, picture = stage.validate()
    _write(log, {"step": step, "seconds": round(seconds, 1), **{f"validation_{k}": v for k, v in figures.items()}})
    cv2.imwrite(str(log.with_suffix(".png")), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return figures


def _write(log: Path, line: dict[str, float]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}) + "\n")


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def parameters_of(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that want gradients."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def freeze(modules: Iterable[torch.nn.Module]) -> None:
    """No gradients, evaluation mode."""
    for module in modules:
        module.requires_grad_(False).eval()
