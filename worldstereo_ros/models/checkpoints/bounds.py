"""Bounds on the numbers in configuration files: no file makes a loader run, or take memory, without end.

A `config.json` decides how many layers are built before the first weight is read. Every number in it is checked against
what no published model comes near, whatever its key is called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worldstereo_ros.models.checkpoints.weights import CheckpointError

MAX_WIDTH = 65_536
MAX_LAYERS = 512  # also blocks, heads and whatever else is repeated
MAX_BLOCKS = 64  # residual blocks at one resolution
MAX_NUMBER = 2**21  # of any key: vocabularies of text encoders are the largest in use, 256 thousand
MAX_LIST = 4096  # entries of a list
MAX_TIMESTEPS = 100_000
_REPEATED = re.compile(r"layers|blocks|depths|stages|heads|groups|repeats")


def check_numbers(file: Path, content: Mapping[str, Any]) -> None:
    """Checks every number and list of a configuration, at any depth.

    Args:
        file: the file, for the message.
        content: its content.

    Raises:
        CheckpointError: a number is larger than `MAX_NUMBER`, or than `MAX_LAYERS` for what is repeated, is not finite,
            or a list is longer than `MAX_LIST`.
    """
    for key, value in _leaves(content):
        name = key.rpartition(".")[2]
        if isinstance(value, list):
            if len(value) > MAX_LIST:
                raise CheckpointError(f"{file}: {key} has {len(value)} entries; at most {MAX_LIST} were expected.")
        elif not isinstance(value, bool) and isinstance(value, int | float):
            limit = MAX_BLOCKS if "blocks" in name else MAX_LAYERS if _REPEATED.search(name) else MAX_NUMBER
            if not abs(value) <= limit:  # NaN, too
                raise CheckpointError(f"{file}: {key} is {_short(value)}; at most {limit} was expected.")


def check_integer(file: Path, values: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """Returns an integer of a configuration.

    Args:
        file: the file, for the message.
        values: its content, or a part of it.
        key: key of the integer.
        low, high: range, both ends included.

    Raises:
        CheckpointError: the value is missing, no integer or out of range.
    """
    value = values.get(key)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{file}: {key} is {_short(value)}; an integer in {low}..{high} was expected.")
    return value


def check_number(file: Path, values: Mapping[str, Any], key: str, low: float, high: float) -> float:
    """Returns a number of a configuration, see `check_integer`.

    Raises:
        CheckpointError: the value is missing, no number or out of range.
    """
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(f"{file}: {key} is {_short(value)}; a number in {low:g}..{high:g} was expected.")
    return value


def check_latent_statistics(file: Path, values: Mapping[str, Any]) -> None:
    """Checks `latents_mean` and `latents_std` of an autoencoder, where it has them.

    Raises:
        CheckpointError: they are no lists of finite numbers, or a standard deviation is not positive.
    """
    for key, low in (("latents_mean", -1e6), ("latents_std", 1e-6)):
        numbers = values.get(key)
        if numbers is None:
            continue
        if not isinstance(numbers, list) or not all(type(n) in (int, float) and low <= n <= 1e6 for n in numbers):
            kind = "finite numbers" if key == "latents_mean" else "positive numbers"
            raise CheckpointError(f"{file}: {key} is no list of {kind}.")


def _leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of all numbers and lists; a number in a list has the key of the list. Not recursive."""
    pending = [("", content)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        else:
            yield key, value
            if isinstance(value, list):
                pending += [(key, item) for item in value]


def _short(value: object) -> str:
    """A value for a message; a number with thousands of digits is not written out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
