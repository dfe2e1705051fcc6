"""The log of a stage: JSON lines, one round of training after the other.

{"round": 0, "resumed": false, "seed": 0, "hardware": {...}, "settings": {...}}     what begins
{"step": 0, "seconds": 3.1, "validation_loss": 1.2, "validation_psnr": 11.0}        before the first step
{"step": 20, "seconds": 9.8, "rate": 1.0, "video_loss": 1.1, ...}                   means over the steps since
{"step": 31, "seconds": 15.2, "interrupted": true}                                  weights were written, unmeasured
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEASURED = "validation_"


@dataclass
class Round:
    """One round of training, as far as its weights were written.

    Attributes:
        about: its first line; {} where there is none.
        steps: how many.
        seconds: how long, validation and writing included.
        figures: of the last validation.
    """

    about: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


def write_line(file: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; numbers are rounded, those that are not finite become null."""
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps({name: _short(value) for name, value in line.items()}, allow_nan=False) + "\n")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def read_rounds(file: Path) -> list[Round]:
    """The rounds of a log; [] where there is no file. A line that a crash cut off is passed over."""
    rounds: list[Round] = []
    begun = False  # by a first line that says so, with no validation after it yet
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "round" in line:
            rounds.append(Round(about=line))
            begun = True
            continue
        measured = {k.removeprefix(MEASURED): v for k, v in line.items() if k.startswith(MEASURED)}
        if line.get("step") == 0 and measured:
            if not begun:
                rounds.append(Round())
            begun = False
        if rounds and (measured or line.get("interrupted")):
            rounds[-1].steps, rounds[-1].seconds = int(line["step"]), float(line["seconds"])
            rounds[-1].figures = measured or rounds[-1].figures
    return rounds


def since_last_restart(rounds: list[Round]) -> list[Round]:
    """The rounds that the weights of today come from: since training began anew for the last time."""
    anew = [index for index, one in enumerate(rounds) if one.about.get("resumed") is False]
    return rounds[anew[-1] :] if anew else rounds
