"""The training loop of all stages: budget, learning rate, averaged weights, validation, logs."""

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

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from worldstereo_ros.io.images import write_image
from worldstereo_ros.training.config import StageConfig
from worldstereo_ros.training.logs import VALIDATION_PREFIX, append_log
from worldstereo_ros.utils.errors import InputError, WorldStereoError

MAX_FAILED_STEPS = 10  # consecutive steps with infinite or NaN values before training stops
FINAL_LEARNING_RATE_RATIO = 0.05  # learning rate at the end, relative to the maximum
LOG_PERIOD_STEPS = 20
REFRESH_PERIOD_S = 60.0  # of the worlds
MAX_RESERVED_FRACTION = 0.1  # of the time, for the last validation


class TrainingError(WorldStereoError, RuntimeError):
    """Training stopped; the message says why and what to do. The weights that were saved last are intact."""


class TrainingInterruptedError(TrainingError):
    """Training was interrupted by Ctrl-C or SIGTERM."""


@dataclass
class ParameterGroup:
    """Parameters with their own optimizer and loss.

    Attributes:
        name: prefix of its values in logs.
        parameters: trained parameters.
        loss: computes the loss of a step, and values for the log.
        learning_rate: maximum.
        updates: optimizer updates per step.
        averaged: whether the exponential moving average of the parameters is saved.
        momentum: the first beta of AdamW.
    """

    name: str
    parameters: list[torch.nn.Parameter]
    loss: Callable[[], tuple[torch.Tensor, dict[str, float]]]
    learning_rate: float
    updates: int = 1
    averaged: bool = True
    momentum: float = 0.9
    optimizer: Any = field(default=None, repr=False)
    ema: Any = field(default=None, repr=False)


class Stage(Protocol):
    """What the training loop needs of a stage."""

    name: str
    config: StageConfig
    parameter_groups: list[ParameterGroup]

    def start_step(self) -> None:
        """Takes the batch of the next step."""

    def validate(self) -> tuple[dict[str, float], np.ndarray]:
        """Metrics, "loss" among them, and an image (H, W, 3) uint8 of examples."""

    def save(self) -> None:
        """Writes the weights."""

    def close(self) -> None:
        """Stops the loader processes."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Context manager: defers Ctrl-C and SIGTERM to the end of the block.

    Raises:
        KeyboardInterrupt: at the end of the block, if there was a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    handlers = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if received:
        raise KeyboardInterrupt


def train(
    stage: Stage,
    accelerator: Accelerator,
    log_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    header: Mapping[str, Any] | None = None,
    refresh: Callable[[], None] = lambda: None,
    on_save: Callable[[], None] = lambda: None,
    console: Console | None = None,
) -> dict[str, float]:
    """Trains a stage until its time or steps are used up.

    Weights are saved after each validation, at the end, and after Ctrl-C.

    Args:
        stage: the stage.
        accelerator: device, mixed precision and trackers.
        log_folder: for `<stage>.jsonl` (see `logs`) and `<stage>.png`.
        minutes, steps: override those of the configuration. With steps alone, training is reproducible, since
            nothing depends on the clock.
        header: first line of the log.
        refresh: called once a minute, to load new worlds.
        on_save: called whenever the weights have been saved.
        console: for the progress bar.

    Returns:
        Metrics of the last validation.

    Raises:
        TrainingError: values are NaN or infinite, or (`TrainingInterruptedError`) Ctrl-C was pressed.
        InputError: neither minutes nor steps are given.
    """
    config = stage.config
    if minutes is None:
        minutes = config.minutes if steps is None else 0.0
    max_steps = config.steps if steps is None else steps
    if minutes <= 0 and max_steps <= 0:
        raise InputError(f"The stage {stage.name} has neither minutes nor steps; set one of them.")
    console = console or Console()
    log_folder.mkdir(parents=True, exist_ok=True)
    log = log_folder / f"{stage.name}.jsonl"
    for group in stage.parameter_groups:
        group.optimizer = torch.optim.AdamW(
            group.parameters,
            lr=group.learning_rate,
            betas=(group.momentum, 0.99),
            weight_decay=config.weight_decay,
            fused=group.parameters[0].device.type == "cuda",
        )
        group.optimizer = accelerator.prepare(group.optimizer)
        if group.averaged:
            group.ema = EMAModel(
                group.parameters,
                decay=config.ema,
                use_ema_warmup=True,
                power=0.75,
                foreach=group.parameters[0].device.type == "cuda",
            )
    begin = last_validation = last_refresh = time.monotonic()
    recent: dict[str, list[float]] = {}
    failures = step = 0
    append_log(log, header or {"round": 0})
    try:
        metrics = _validate(stage, accelerator, log, step, 0.0)
    except KeyboardInterrupt:
        raise TrainingInterruptedError(
            f"{stage.name} was interrupted before its first step; its weights are unchanged."
        ) from None
    last_validation = time.monotonic()
    reserved = last_validation - begin
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[metrics]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage.name, total=1.0, metrics=_format(metrics))
        try:
            while True:
                now = time.monotonic()
                # The time of the last validation is reserved, as estimated from earlier ones.
                spent = (now - begin + min(reserved, MAX_RESERVED_FRACTION * 60 * minutes)) / 60
                done = max(spent / minutes if minutes > 0 else 0.0, step / max_steps if max_steps > 0 else 0.0)
                if done >= 1:
                    break
                factor = min(1.0, (step + 1) / max(config.warmup, 1)) * _decay(done)
                stage.start_step()
                finite = True
                for group in stage.parameter_groups:
                    for _ in range(group.updates):
                        finite &= _update(group, accelerator, config.clip_norm, factor, recent)
                failures = 0 if finite else failures + 1
                if failures >= MAX_FAILED_STEPS:
                    raise TrainingError(
                        f"{stage.name}: {failures} consecutive steps had values that are not finite, at step {step}; "
                        f"lower its learning_rate ({config.learning_rate:g}) or train with precision: no. The "
                        "weights that were saved last are intact."
                    )
                step += 1
                bar.update(task, completed=done)
                if step % LOG_PERIOD_STEPS == 0:
                    _log_means(stage, accelerator, log, step, now - begin, factor, recent)
                if now - last_refresh > REFRESH_PERIOD_S:
                    refresh()
                    last_refresh = now
                if config.validate_minutes > 0 and now - last_validation > 60 * config.validate_minutes:
                    metrics = _validate_and_save(stage, accelerator, log, step, now - begin)
                    on_save()
                    last_validation = time.monotonic()
                    reserved = min(reserved, last_validation - now)
                    bar.update(task, metrics=_format(metrics))
                    if not console.is_terminal:
                        console.print(f"{stage.name}: step {step}, {(now - begin) / 60:.1f} min, {_format(metrics)}")
            if recent:
                _log_means(stage, accelerator, log, step, time.monotonic() - begin, factor, recent)
            metrics = _validate_and_save(stage, accelerator, log, step, time.monotonic() - begin)
            on_save()
        except KeyboardInterrupt:
            with uninterrupted():
                if step:
                    with _averages_in_place(stage.parameter_groups):
                        stage.save()
                    append_log(log, {"step": step, "seconds": time.monotonic() - begin, "interrupted": True})
                    on_save()
            raise TrainingInterruptedError(
                f"{stage.name} was interrupted after {step} steps; its weights are saved. Run the same "
                "command to resume."
            ) from None
    for group in stage.parameter_groups:
        if group.ema is not None:
            group.ema.copy_to(group.parameters)
    duration = (time.monotonic() - begin) / 60
    console.print(f"[bold]{stage.name}[/]: {step} steps in {duration:.1f} min, {_format(metrics)}")
    return metrics


def _log_means(
    stage: Stage,
    accelerator: Accelerator,
    log: Path,
    step: int,
    seconds: float,
    factor: float,
    recent: dict[str, list[float]],
) -> None:
    means = {name: float(np.mean(values)) for name, values in recent.items()}
    recent.clear()
    _log(stage, accelerator, log, {"step": step, "seconds": seconds, "rate": factor, **means})


def _update(
    group: ParameterGroup, accelerator: Accelerator, max_norm: float, factor: float, recent: dict[str, list[float]]
) -> bool:
    """One optimizer update. Returns False, and changes nothing, if the loss or gradient is not finite."""
    for parameters in group.optimizer.param_groups:
        parameters["lr"] = group.learning_rate * factor
    with accelerator.autocast():
        loss, values = group.loss()
    group.optimizer.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(loss)):
        return False
    accelerator.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(group.parameters, max_norm)
    if not bool(torch.isfinite(norm)):
        group.optimizer.zero_grad(set_to_none=True)
        return False
    group.optimizer.step()
    if group.ema is not None:
        group.ema.step(group.parameters)
    logged = {f"{group.name}_loss": float(loss.detach()), f"{group.name}_gradient": float(norm), **values}
    for name, value in logged.items():
        recent.setdefault(name, []).append(value)
    return True


def _decay(done: float) -> float:
    """Learning-rate factor: constant for a third of the run, then a cosine decay to `FINAL_LEARNING_RATE_RATIO`."""
    if done < 1 / 3:
        return 1.0
    return FINAL_LEARNING_RATE_RATIO + (1 - FINAL_LEARNING_RATE_RATIO) * 0.5 * (
        1 + math.cos(math.pi * (done - 1 / 3) * 1.5)
    )


@contextmanager
def _averages_in_place(parameter_groups: Iterable[ParameterGroup]) -> Iterator[None]:
    """Context manager: replaces parameters by their averages."""
    averaged = [group for group in parameter_groups if group.ema is not None]
    with uninterrupted():
        for group in averaged:
            group.ema.store(group.parameters)
            group.ema.copy_to(group.parameters)
    try:
        yield
    finally:
        with uninterrupted():
            for group in averaged:
                group.ema.restore(group.parameters)


def _validate_and_save(
    stage: Stage, accelerator: Accelerator, log: Path, step: int, seconds: float
) -> dict[str, float]:
    """Validates and saves the averaged weights."""
    with _averages_in_place(stage.parameter_groups):
        metrics = _validate(stage, accelerator, log, step, seconds)
        with uninterrupted():
            stage.save()
    return metrics


@torch.no_grad()
def _validate(stage: Stage, accelerator: Accelerator, log: Path, step: int, seconds: float) -> dict[str, float]:
    metrics, image = stage.validate()
    values = {VALIDATION_PREFIX + name: value for name, value in metrics.items()}
    _log(stage, accelerator, log, {"step": step, "seconds": seconds, **values})
    write_image(log.with_suffix(".png"), image)
    return metrics


def _log(stage: Stage, accelerator: Accelerator, log: Path, line: Mapping[str, Any]) -> None:
    """Appends to the log; gives the values to the trackers of accelerate, if there are any."""
    append_log(log, line)
    values = {f"{stage.name}/{name}": value for name, value in line.items() if name != "step"}
    accelerator.log(values, step=line["step"])


def _format(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def parameters_of(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that require gradients."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def freeze(modules: Iterable[torch.nn.Module]) -> None:
    """Disables gradients and sets evaluation mode."""
    for module in modules:
        module.requires_grad_(False).eval()
