"""Options of the loop in names of pipelines, for ablations: `geometric?update=false&revisit=true`."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.pipelines.anyrecon.sequence import RENDERS_PER_CHUNK
from worldstereo_ros.reconstruction.segment_captures import SELECTIONS, VISIBLE
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class LoopOptions:
    """How the loop is run.

    Attributes:
        cache: give each segment the captures that saw most of it; false: one capture, of each view for pipelines that
            select references by themselves.
        update: add what was imagined to the geometry.
        shuffle: give the photographs in another order, which must change nothing.
        revisit: imagine the path back as well, and compare the two imaginations of each pose.
        captures: visible or published, see `segment_captures.SegmentPipeline`.
        segment: largest number of views of a segment.
    """

    cache: bool = True
    update: bool = True
    shuffle: bool = False
    revisit: bool = False
    captures: str = VISIBLE
    segment: int = RENDERS_PER_CHUNK


FLAGS = ("cache", "update", "shuffle", "revisit")
NAMES = (*FLAGS, "captures", "segment")


def split_loop_options(text: str) -> tuple[str, LoopOptions]:
    """Splits the options of the loop off a name.

    Returns:
        (the name with the options that are left, the options of the loop).

    Raises:
        InputError: an option of the loop is repeated or has an invalid value.
    """
    model, mark, query = text.partition("?")
    values: dict[str, bool | str | int] = {}
    others = []
    for part in query.split("&") if mark else ():
        name, _, value = part.partition("=")
        if name not in NAMES:
            others.append(part)
            continue
        if name in values:
            raise InputError(f"The pipeline '{text}' has {name} twice; give it once.")
        values[name] = _parse(text, name, value)
    return model + ("?" + "&".join(others) if others else ""), LoopOptions(**values)  # type: ignore[arg-type]


def _parse(text: str, name: str, value: str) -> bool | str | int:
    if name in FLAGS and value in ("true", "false"):
        return value == "true"
    if name == "captures" and value in SELECTIONS:
        return value
    if name == "segment" and value.isdecimal() and 1 <= int(value) <= 1000:
        return int(value)
    expected = {"captures": " or ".join(SELECTIONS), "segment": "a whole number in 1..1000"}
    raise InputError(f"The pipeline '{text}' has {name}={value}; {expected.get(name, 'true or false')} was expected.")
