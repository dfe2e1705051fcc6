"""Options of sources, paths and all jobs in jobs.yaml: those of `worldstereo imagine`, by the same names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from worldstereo_ros.utils.errors import InputError

ALL_KINDS = ("source", "map", "bag", "worlds")


@dataclass(frozen=True)
class Option:
    """A value of one type.

    Attributes:
        type: bool, int, float or str; a float may be given as a whole number.
        least, most: range of a number, both included.
        kinds: kinds of sources that it is for.
        frames: it is a list of numbers of frames, and becomes text, such as "0,12".
    """

    type: type
    least: float = -math.inf
    most: float = math.inf
    kinds: tuple[str, ...] = ALL_KINDS
    frames: bool = False

    @property
    def expected(self) -> str:
        """What is expected, for sentences."""
        if self.frames:
            return "a list of numbers of frames, such as [0, 12]"
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return "text"
        what = "a whole number" if self.type is int else "a number"
        if math.isinf(self.least) and math.isinf(self.most):
            return what
        return f"{what} from {self.least:g}" + ("" if math.isinf(self.most) else f" to {self.most:g}")

    def check(self, value: Any) -> Any:
        """The value as its type. Raises ValueError."""
        if self.frames:
            if not isinstance(value, list) or not value:
                raise ValueError
            if not all(isinstance(number, int) and not isinstance(number, bool) for number in value):
                raise ValueError
            return ",".join(str(number) for number in value)
        if isinstance(value, bool) != (self.type is bool):
            raise ValueError
        if self.type is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, self.type) or (isinstance(value, str) and "\0" in value):
            raise ValueError
        if isinstance(value, int | float) and not (math.isfinite(value) and self.least <= value <= self.most):
            raise ValueError
        return value


_BAG = ("bag",)
_RECORDED = ("source", "bag", "worlds")
SOURCE_OPTIONS = {
    "observations": Option(int, 1, 10_000, _RECORDED),
    "observe": Option(str, kinds=_RECORDED, frames=True),
    "size": Option(str, kinds=_RECORDED),
    "fov": Option(float, 1, 170, ("source",)),
    **{name: Option(str, kinds=("source", "bag")) for name in ("depth_unit", "pose_source", "depth_source")},
    **{
        name: Option(str, kinds=_BAG)
        for name in (
            "image_topic", "depth_topic", "camera_info_topic", "pose_topic", "world_frame", "base_frame", "rectified",
            "camera_axes",
        )
    },
    "tolerance": Option(float, 0, 3600, _BAG),
}  # fmt: skip
PATH_OPTIONS = {
    "views": Option(int, 1, 1000),
    "distance": Option(float),
    "path_pose_frame": Option(str),
    "path_heading": Option(str),
}
SETTINGS = {
    **{
        name: Option(str)
        for name in (
            "model", "variant", "prompt", "depth_model", "device", "dtype", "control_backend", "fill", "captures",
        )
    },
    "clearance": Option(float, 0, 1000),
    "loop": Option(bool),
    "segment": Option(int, 1, 1000),
    "update": Option(bool),
}  # fmt: skip


def check_keys(given: dict[Any, Any], known: Iterable[str], where: str) -> None:
    """Checks that all keys are known; names the nearest one if not. Raises InputError."""
    names = list(known)
    for key in given:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"the keys are {', '.join(names)}."
            raise InputError(f"{where}: the key '{key}' is unknown; {hint}")


def check_options(given: Any, table: dict[str, Option], where: str) -> dict[str, Any]:
    """Checks names and values of options.

    Args:
        given: as read from YAML.
        table: the options that there are.
        where: place in the file, for sentences.

    Returns:
        The values by their names.

    Raises:
        InputError: an option is unknown, or a value has another type or is out of range.
    """
    if not isinstance(given, dict):
        raise InputError(f"`{where}` is {given!r:.60}; keys and values were expected.")
    check_keys(given, table, where)
    checked = {}
    for name, value in given.items():
        try:
            checked[name] = table[name].check(value)
        except ValueError:
            shown = "missing" if value is None else f"{value!r:.60}"
            raise InputError(f"{where}: `{name}` is {shown}; {table[name].expected} was expected.") from None
    return checked
