"""A training loop within a time budget: walks arrive meanwhile, weights are averaged, steps that fail are skipped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from worldstereo_ros.models.pointmaps.model import save_part
from worldstereo_ros.training.config import TrainingConfigError
from worldstereo_ros.training.logs import append_log
from worldstereo_ros.training.pointmap_settings import PointmapTraining

LOG_EVERY_S = 10.0
MAX_BAD_STEPS = 200  # in a row


def training_device(name: str) -> torch.device:
    """The device of a name: cpu, cuda or auto.

    Raises:
        TrainingConfigError: it is cuda, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingConfigError("The device is cuda and this machine has no usable CUDA GPU; use device auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Feed(Protocol):
    """Where clips come from, such as `WalkFeed`; `batch` is the number of clips of a step."""

    batch: int

    def poll(self) -> None:
        """Takes what was rendered meanwhile, or renders."""

    def walks(self) -> int:
        """Walks or clips so far."""


class TimedTrainer:
    """Networks, averages of their weights, clock and log of a run.

    Args:
        settings: how to train.
        folder: folder of the run.
        started: `time.monotonic()` at which the budget starts.
        device: device of the networks.
        parts: networks that are trained, by the name of their folder.
        feed: where clips come from.
    """

    max_norm = 2.0
    warm_up_steps = 100
    save_dtype = torch.bfloat16

    def __init__(
        self,
        settings: PointmapTraining,
        folder: Path,
        started: float,
        device: torch.device,
        parts: dict[str, nn.Module],
        feed: Feed,
    ) -> None:
        self.settings, self.folder, self.started, self.device = settings, folder, started, device
        self.parts, self.walk_feed = parts, feed
        self.averages = {
            name: {key: value.detach().clone() for key, value in part.state_dict().items()}
            for name, part in parts.items()
        }
        # Weights are only ever changed in place.
        states = {name: part.state_dict() for name, part in parts.items()}
        pairs = [(self.averages[name][key], value) for name, state in states.items() for key, value in state.items()]
        self._averaged_tensors, self._tensors = [pair[0] for pair in pairs], [pair[1].detach() for pair in pairs]
        self.steps, self.updates, self._bad = 0, 0, 0
        self.last_validation = time.monotonic()
        self._last_log = time.monotonic()
        self._sums: dict[str, torch.Tensor] = {}
        self._summed = 0

    def elapsed(self) -> float:
        """Seconds of the budget that are gone."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Prints a line with the time."""
        print(f"[{self.elapsed():6.1f} s] {text}", flush=True)

    def autocast(self) -> torch.autocast:
        """bf16 on CUDA."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def run(
        self,
        name: str,
        end: float,
        step: Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]],
        groups: list[dict[str, Any]],
        decay_from: float,
        max_steps: int | None = None,
    ) -> None:
        """Runs steps until `end` seconds of the budget.

        Args:
            name: of the stage.
            end: seconds.
            step: gives a loss and its parts.
            groups: parameters with their highest learning rates (`lr`).
            decay_from: share of the stage after which the rate falls, to a fiftieth.
            max_steps: steps at most.
        """
        first = self.elapsed()
        self._sums, self._summed, self._last_log = {}, 0, time.monotonic()
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=self.device.type == "cuda")
        highest = [group["lr"] for group in optimiser.param_groups]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        count = 0
        loss: torch.Tensor | None
        while (now := self.elapsed()) < end and (max_steps is None or count < max_steps):
            progress = (now - first) / max(end - first, 1e-6)
            fall = max(0.0, progress - decay_from) / max(1 - decay_from, 1e-6)
            rate = min(1.0, (count + 1) / self.warm_up_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))
            for group, high in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = high * rate
            if count % self.settings.walk_every == 0:
                self.walk_feed.poll()
            optimiser.zero_grad(set_to_none=True)
            try:
                loss, parts = step()
                loss.backward()
            except torch.OutOfMemoryError:
                if self.walk_feed.batch == 1:
                    raise
                loss, parts = None, {}
            if loss is None:  # after the error has let go of its tensors
                self.walk_feed.batch //= 2
                torch.cuda.empty_cache()
                self.say(f"{name}: not enough memory; {self.walk_feed.batch} clips a step from here on")
                continue
            norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
            count += 1
            self.steps += 1
            if not bool(torch.isfinite(norm)):
                self._bad += 1
                if self._bad > MAX_BAD_STEPS:
                    self.say(f"{name}: {self._bad} steps in a row were not finite; the stage ends here")
                    break
                continue
            self._bad = 0
            optimiser.step()
            self._average()
            self._log(name, {"loss": loss.detach(), "norm": norm.detach(), **parts}, rate)
            if time.monotonic() - self.last_validation > self.settings.validation_s and name != "autoencoder":
                self.checkpoint(name)
        optimiser.zero_grad(set_to_none=True)
        self.say(f"{name}: {count} steps in {self.elapsed() - first:.0f} s")

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averages of the weights towards the weights."""
        self.updates += 1
        decay = min(self.settings.ema, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged_tensors, self._tensors, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block, the networks have the averages as weights."""
        kept = {}
        for name, part in self.parts.items():
            kept[name] = {key: value.detach().clone() for key, value in part.state_dict().items()}
            part.load_state_dict(self.averages[name])
            part.eval()
        try:
            yield
        finally:
            for name, part in self.parts.items():
                part.load_state_dict(kept[name])
                part.train()

    @contextmanager
    def saving(self, close: Callable[[], None] | None = None) -> Iterator[None]:
        """Inside the block, Ctrl-C writes the weights before it ends the training; `close` is called at the end."""
        try:
            yield
        except KeyboardInterrupt:
            if self.steps:
                self.save()
                self.say(f"interrupted; the weights of step {self.steps} are in {self.folder}")
            raise
        finally:
            if close is not None:
                close()

    def _log(self, name: str, parts: dict[str, torch.Tensor], rate: float) -> None:
        for key, value in parts.items():
            self._sums[key] = self._sums[key] + value.float() if key in self._sums else value.float()
        self._summed += 1
        now = time.monotonic()
        if now - self._last_log < LOG_EVERY_S:
            return
        means = {key: float(value) / self._summed for key, value in self._sums.items()}
        seconds = (now - self._last_log) / self._summed
        line = {"step": self.steps, "seconds": self.elapsed(), "stage": name, "step_seconds": seconds, **means}
        append_log(self.folder / "log.jsonl", {**line, "walks": self.walk_feed.walks(), "rate": rate})
        shown = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        self.say(f"{name} {self.steps} ({seconds * 1000:.0f} ms, {self.walk_feed.walks()} walks): {shown}")
        self._sums, self._summed, self._last_log = {}, 0, now

    def save(self) -> None:
        """Writes the averaged weights."""
        for name, part in self.parts.items():
            save_part(self.folder / name, part, self.averages[name], self.save_dtype)

    def checkpoint(self, name: str) -> dict[str, float]:
        """Writes the averaged weights; subclasses validate with them, too."""
        self.save()
        self.last_validation = time.monotonic()
        return {}
