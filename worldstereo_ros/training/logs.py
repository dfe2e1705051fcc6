"""Logs of stages: JSON lines. A stage that was trained several times has one section for each time.

{"round": 0, "resumed": false, "seed": 0, "hardware": {...}, "settings": {...}}     start of training
{"step": 0, "seconds": 3.1, "validation_loss": 1.2, "validation_psnr": 11.0}        validation before the first step
{"step": 20, "seconds": 9.8, "rate": 1.0, "video_loss": 1.1, ...}                   means since the last line
{"step": 31, "seconds": 15.2, "interrupted": true}                                  interrupted: weights were saved
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VALIDATION_PREFIX = "validation_"


@dataclass
class TrainingPeriod:
    """One period of training, from a call of `train` to the weights that it saved last.

    Attributes:
        header: the first line, with configuration and hardware; {} if the log has none.
        steps: number of steps.
        seconds: duration, validation and saving included.
        metrics: metrics of the last validation.
    """

    header: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def append_log(file: Path, line: Mapping[str, Any]) -> None:
    """Appends a line. Numbers are rounded to five decimals; NaN and infinity become null."""
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps({name: _rounded(value) for name, value in line.items()}, allow_nan=False) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def read_log(file: Path) -> list[TrainingPeriod]:
    """Reads the periods of a log; [] if there is no file. Incomplete lines, from a crash, are skipped."""
    periods: list[TrainingPeriod] = []
    has_header = False  # of a period without validation so far
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "round" in line:
            periods.append(TrainingPeriod(header=line))
            has_header = True
            continue
        metrics = {k.removeprefix(VALIDATION_PREFIX): v for k, v in line.items() if k.startswith(VALIDATION_PREFIX)}
        if line.get("step") == 0 and metrics:
            if not has_header:
                periods.append(TrainingPeriod())
            has_header = False
        if periods and (metrics or line.get("interrupted")):
            periods[-1].steps, periods[-1].seconds = int(line["step"]), float(line["seconds"])
            periods[-1].metrics = metrics or periods[-1].metrics
    return periods


def since_last_restart(periods: list[TrainingPeriod]) -> list[TrainingPeriod]:
    """The periods that contributed to the current weights: those since training last started from scratch."""
    starts = [index for index, period in enumerate(periods) if period.header.get("resumed") is False]
    return periods[starts[-1] :] if starts else periods
