"""The loop that all stages share: time, learning rate, averaged weights, validation, logs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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

from worldstereo_ros.training.config import StageConfig
from worldstereo_ros.training.logs import MEASURED, write_line
from worldstereo_ros.utils.errors import InputError, WorldStereoError

MOST_FAILURES = 10  # steps in a row whose numbers are not finite, before training gives up
FINAL_RATE = 0.05  # of the learning rate, at the end
LOGGED_EVERY = 20  # steps
MOST_RESERVED = 0.1  # of the time, for the last validation


class TrainingError(WorldStereoError, RuntimeError):
    """Training cannot go on; the message says why and what to do. The weights written last are whole."""


class TrainingInterruptedError(TrainingError):
    """Somebody wanted training to end."""


@dataclass
class ParameterGroup:
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
    """One of the stages."""

    name: str
    settings: StageConfig
    parameter_groups: list[ParameterGroup]

    def start_step(self) -> None:
        """Draws what the step learns from."""

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Figures, with "loss" among them, and a picture (H, W, 3) uint8 to look at."""

    def save(self) -> None:
        """Writes the weights."""

    def close(self) -> None:
        """Ends the processes that draw for it."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is inside runs to its end; Ctrl-C, or a request to end, comes after it.

    Raises:
        KeyboardInterrupt: at the end, where one came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in wanted]
    try:
        yield
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if came:
        raise KeyboardInterrupt


def train(
    stage: Stage,
    accelerator: Accelerator,
    log_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    about: Mapping[str, Any] | None = None,
    between: Callable[[], None] = lambda: None,
    console: Console | None = None,
) -> dict[str, float]:
    """Trains a stage until its time or its steps are over, then writes its weights.

    Each validation writes them too. So does Ctrl-C, without a validation.

    Args:
        stage: what is trained.
        accelerator: devices and mixed precision.
        log_folder: gets `<stage>.jsonl` (see `journal`) and `<stage>.png`.
        minutes, steps: instead of those of the stage's settings; steps alone make runs that can be repeated, since
            nothing in them depends on the clock.
        about: what the log says of this round.
        between: called about once a minute, to exchange worlds.
        console: where progress is shown.

    Returns:
        The last validation's figures.

    Raises:
        TrainingError: the numbers are not finite any more, or (`TrainingInterruptedError`) Ctrl-C was pressed.
        ValueError: neither time nor steps are limited.
    """
    settings = stage.settings
    if minutes is None:
        minutes = settings.minutes if steps is None else 0.0
    most = settings.steps if steps is None else steps
    if minutes <= 0 and most <= 0:
        raise InputError(f"The stage {stage.name} has neither minutes nor steps; give one of them.")
    console = console or Console()
    log_folder.mkdir(parents=True, exist_ok=True)
    log = log_folder / f"{stage.name}.jsonl"
    for player in stage.parameter_groups:
        player.optimizer = torch.optim.AdamW(
            player.parameters,
            lr=player.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=player.parameters[0].device.type == "cuda",
        )
        player.optimizer = accelerator.prepare(player.optimizer)
        if player.averaged:
            player.ema = EMAModel(
                player.parameters,
                decay=settings.ema,
                use_ema_warmup=True,
                power=0.75,
                foreach=player.parameters[0].device.type == "cuda",
            )
    begin = last_validation = last_between = time.monotonic()
    recent: dict[str, list[float]] = {}
    failures = step = 0
    write_line(log, about or {"round": 0})
    try:
        figures = _validate(stage, log, step, 0.0)
    except KeyboardInterrupt:
        raise TrainingInterruptedError(
            f"{stage.name} was interrupted before its first step; its weights are as they were."
        ) from None
    last_validation = time.monotonic()
    reserved = last_validation - begin
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage.name, total=1.0, figures=_short(figures))
        try:
            while True:
                now = time.monotonic()
                # The last validation belongs to the time too. What compiling took of the first does not come again.
                spent = (now - begin + min(reserved, MOST_RESERVED * 60 * minutes)) / 60
                done = max(spent / minutes if minutes > 0 else 0.0, step / most if most > 0 else 0.0)
                if done >= 1:
                    break
                factor = min(1.0, (step + 1) / max(settings.warmup, 1)) * _decay(done)
                stage.start_step()
                fine = True
                for player in stage.parameter_groups:
                    for _ in range(player.updates):
                        fine &= _update(player, accelerator, settings.clip_norm, factor, recent)
                failures = 0 if fine else failures + 1
                if failures >= MOST_FAILURES:
                    raise TrainingError(
                        f"{stage.name}: {failures} steps in a row gave numbers that are not finite, at step {step}; "
                        f"lower its learning_rate ({settings.learning_rate:g}) or train with precision: no. The "
                        "weights written last are whole."
                    )
                step += 1
                bar.update(task, completed=done)
                if step % LOGGED_EVERY == 0:
                    _log_means(log, step, now - begin, factor, recent)
                if now - last_between > 60:
                    between()
                    last_between = now
                if settings.validate_minutes > 0 and now - last_validation > 60 * settings.validate_minutes:
                    figures = _averaged(stage, log, step, now - begin)
                    last_validation = time.monotonic()
                    reserved = min(reserved, last_validation - now)
                    bar.update(task, figures=_short(figures))
                    if not console.is_terminal:
                        console.print(f"{stage.name}: step {step}, {(now - begin) / 60:.1f} min, {_short(figures)}")
            if recent:
                _log_means(log, step, time.monotonic() - begin, factor, recent)
            figures = _averaged(stage, log, step, time.monotonic() - begin)
        except KeyboardInterrupt:
            with uninterrupted():
                if step:
                    with _averages_in_place(stage.parameter_groups):
                        stage.save()
                    write_line(log, {"step": step, "seconds": time.monotonic() - begin, "interrupted": True})
            raise TrainingInterruptedError(
                f"{stage.name} was interrupted after {step} steps; its weights are written. The same command goes on."
            ) from None
    for player in stage.parameter_groups:
        if player.ema is not None:
            player.ema.copy_to(player.parameters)
    took = (time.monotonic() - begin) / 60
    console.print(f"[bold]{stage.name}[/]: {step} steps in {took:.1f} min, {_short(figures)}")
    return figures


def _log_means(log: Path, step: int, seconds: float, factor: float, recent: dict[str, list[float]]) -> None:
    means = {name: float(np.mean(values)) for name, values in recent.items()}
    recent.clear()
    write_line(log, {"step": step, "seconds": seconds, "rate": factor, **means})


def _update(
    player: ParameterGroup, accelerator: Accelerator, norm: float, factor: float, recent: dict[str, list[float]]
) -> bool:
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
    means = {f"{player.name}_loss": float(loss.detach()), f"{player.name}_gradient": float(length), **figures}
    for name, value in means.items():
        recent.setdefault(name, []).append(value)
    return True


def _decay(done: float) -> float:
    """Flat for a third of the run, then half a cosine down to `FINAL_RATE`."""
    if done < 1 / 3:
        return 1.0
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * (done - 1 / 3) * 1.5))


@contextmanager
def _averages_in_place(parameter_groups: Iterable[ParameterGroup]) -> Iterator[None]:
    """Inside, parameters are the averaged ones."""
    averaged = [player for player in parameter_groups if player.ema is not None]
    with uninterrupted():
        for player in averaged:
            player.ema.store(player.parameters)
            player.ema.copy_to(player.parameters)
    try:
        yield
    finally:
        with uninterrupted():
            for player in averaged:
                player.ema.restore(player.parameters)


def _averaged(stage: Stage, log: Path, step: int, seconds: float) -> dict[str, float]:
    """Validates and writes the averaged weights."""
    with _averages_in_place(stage.parameter_groups):
        figures = _validate(stage, log, step, seconds)
        with uninterrupted():
            stage.save()
    return figures


@torch.no_grad()
def _validate(stage: Stage, log: Path, step: int, seconds: float) -> dict[str, float]:
    figures, picture = stage.validate()
    write_line(log, {"step": step, "seconds": seconds, **{MEASURED + name: n for name, n in figures.items()}})
    cv2.imwrite(str(log.with_suffix(".png")), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return figures


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def parameters_of(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that want gradients."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def freeze(modules: Iterable[torch.nn.Module]) -> None:
    """No gradients, evaluation mode."""
    for module in modules:
        module.requires_grad_(False).eval()
