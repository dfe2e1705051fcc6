"""Rows of the table of parameters: their metadata, their types and ranges, and groups of rows. Imports no rclpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from worldstereo_ros.utils.errors import WorldStereoError

Value = bool | int | float | str | list[float]

# When a new value takes effect.
LIVE = "live"  # immediately
CONFIGURE = "configure"  # when the node is configured: clean up, set, configure
START = "start"  # at the start of the process: read-only


class ConfigurationError(WorldStereoError, ValueError):
    """A value is not usable; the message says what to change."""


@dataclass(frozen=True)
class Row:
    """One parameter.

    Attributes:
        name: its full name in ROS; of a parameter in a group with that of the group, as `stereo.base`.
        metadata: default, description, unit, low, high, choices, applies.
    """

    name: str
    metadata: Mapping[str, Any]


def row(
    default: Value,
    description: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    applies: str = LIVE,
) -> Any:
    """A field of a dataclass of parameters.

    Args:
        default: default; its type is that of the parameter.
        description: a sentence for the documentation.
        unit: unit of the value.
        low, high: range of a number.
        choices: allowed texts; empty = any.
        applies: `LIVE`, `CONFIGURE` or `START`.
    """
    limits = {"low": low, "high": high, "choices": choices}
    info = {"description": description, "unit": unit, **limits, "applies": applies}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={**info, "default": default})
    return field(default=default, metadata={**info, "default": default})


def group(kind: type) -> Any:
    """A field of a dataclass of parameters that holds another one; the names of its rows begin with the field's."""
    return field(default_factory=kind, metadata={"group": kind})


def rows_of(kind: type, prefix: str = "") -> tuple[Row, ...]:
    """Returns the rows of a dataclass of parameters, with those of its groups."""
    rows: list[Row] = []
    for item in fields(kind):
        if "group" in item.metadata:
            rows += rows_of(item.metadata["group"], f"{prefix}{item.name}.")
        else:
            rows.append(Row(prefix + item.name, item.metadata))
    return tuple(rows)


def assemble(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Makes a dataclass of parameters of values by full name; those that are missing have their defaults."""
    chosen: dict[str, Any] = {}
    for item in fields(kind):
        name = prefix + item.name
        if "group" in item.metadata:
            chosen[item.name] = assemble(item.metadata["group"], values, f"{name}.")
        elif name in values:
            chosen[item.name] = values[name]
    return kind(**chosen)


def ros_type(row: Row) -> str:
    """Returns the row's type as ROS names it: bool, integer, double, string or double_array."""
    default = row.metadata["default"]
    if isinstance(default, bool):
        return "bool"
    names = {int: "integer", float: "double", str: "string", list: "double_array"}
    return names[type(default)]


def check_type_and_range(row: Row, value: object) -> Value:
    """Checks the type, range and choices of a value, and converts it to the row's type.

    Raises:
        ConfigurationError: the value is not usable.
    """
    name, info, expected = row.name, row.metadata, ros_type(row)
    if expected == "double" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # users write `1` for `1.0`
    if expected == "double_array" and not isinstance(value, (str, bytes)) and isinstance(value, Iterable):
        value = [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in value]
    type_of = {"bool": bool, "integer": int, "double": float, "string": str, "double_array": list}[expected]
    if not isinstance(value, type_of) or (expected == "integer" and isinstance(value, bool)):
        raise ConfigurationError(f"The parameter '{name}' is {value!r}; a value of type {expected} was expected.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = info["low"], info["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise ConfigurationError(
                f"The parameter '{name}' is {value}; a value between {low} and {high} was expected."
            )
    if info["choices"] and value not in info["choices"]:
        raise ConfigurationError(
            f"The parameter '{name}' is '{value}'; one of {', '.join(info['choices'])} was expected."
        )
    return value  # type: ignore[return-value]  # `type_of` is chosen at run time
