"""Where the checks of a GPU run, and how they skip, fail and compare."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PARENT_PERIOD_S = 1.0


class Skipped(Exception):  # noqa: N818 - no error
    """The check cannot run here; the message says why."""


class CheckFailed(Exception):  # noqa: N818
    """A result is wrong."""


@dataclass(frozen=True)
class Place:
    """Where checks run: the device, whether at small sizes, and a folder for what they write."""

    device: torch.device
    toy: bool
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of networks: bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def seconds(self, work: Callable[[], Any], repeats: int = 3) -> float:
        """The least seconds of a call, after one to warm up."""
        work()
        best = math.inf
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best

    def wait(self) -> None:
        """Waits for the device, and raises what failed on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def need_gpu(self, what: str) -> None:
        """Skips the check without a GPU."""
        if self.device.type != "cuda":
            raise Skipped(f"{what} needs a GPU")


def end_with_parent(number: int) -> None:
    """Sends this process a signal when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_PERIOD_S)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def near(actual: torch.Tensor, expected: torch.Tensor, limit: float, what: str) -> float:
    """The relative error ||a - e|| / ||e||; raises CheckFailed above the limit, and for NaN."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = float((actual - expected).norm() / expected.norm().clamp_min(1e-12))
    if not error <= limit:
        raise CheckFailed(f"{what}: relative error {error:.2g}, at most {limit:g} was expected")
    return error
