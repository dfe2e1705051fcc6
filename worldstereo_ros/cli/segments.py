"""The loop of `worldstereo imagine`: segments, the photographs that each gets, and what is checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldstereo_ros.cli.options import PATH
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from worldstereo_ros.cli.paths import ChosenPath
    from worldstereo_ros.reconstruction.loop import LoopView
    from worldstereo_ros.world import WorldModel

MIN_CAPTURES = 2  # in a map: with fewer, there is nothing to choose from
MAX_LISTED = 60  # views whose pose is printed one by one; results.json has all

Loop = Annotated[
    bool | None,
    typer.Option(
        "--loop/--no-loop",
        help="Imagine segment by segment: each gets the observed views that saw most of it, each imagined view is "
        "located against them, and those that drifted stay out of the map.",
        show_default="with a --map of several observed views",
        rich_help_panel=PATH,
    ),
]
Segment = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Loop: largest number of views of a segment. What a segment showed is remembered before the next.",
        min=1,
        max=1000,
        show_default="35, or the clip length of the model",
        rich_help_panel=PATH,
    ),
]
Captures = Annotated[
    str,
    typer.Option(
        metavar="CHOICE",
        help="Loop: how observed views are chosen: visible (those that saw most, without what is hidden), or published "
        "(AnyRecon's count of points, with what is hidden).",
        rich_help_panel=PATH,
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update/--no-update",
        help="Loop: remember what was imagined, labelled as imagined, so that later segments continue it.",
        rich_help_panel=PATH,
    ),
]


@dataclass(frozen=True)
class LoopSettings:
    """How the loop is run, see `reconstruction.loop.imagine_place`; None as the segment is its default."""

    segment: int | None
    captures: str
    update: bool


def choose_loop(
    loop: bool | None, segment: int | None, captures: str, update: bool, *, from_map: bool, observed: int
) -> LoopSettings | None:
    """Decides whether the loop is run.

    Args:
        loop, segment, captures, update: values of the options.
        from_map: whether the source is a saved map.
        observed: number of observed views.

    Returns:
        Its settings; None without the loop.

    Raises:
        InputError: an option of the loop is given without it, or the choice of captures is unknown.
    """
    from worldstereo_ros.reconstruction.segment_captures import SELECTIONS

    if captures not in SELECTIONS:
        raise InputError(f"--captures is '{captures}'; {' or '.join(SELECTIONS)} was expected.")
    if loop is None:
        loop = from_map and observed >= MIN_CAPTURES
    if loop:
        return LoopSettings(segment, captures, update)
    given = {"--segment": segment is not None, "--captures": captures != SELECTIONS[0], "--no-update": not update}
    if named := [name for name, value in given.items() if value]:
        raise InputError(f"{' and '.join(named)} need the loop; add --loop.")
    return None


def imagine_segments(
    world: WorldModel,
    path: ChosenPath,
    settings: LoopSettings,
    console: Console,
    *,
    prompt: str,
    seed: int,
    clearance: float,
    progress: bool = True,
) -> list[LoopView]:
    """Imagines the views of a path by the loop, and prints which photographs a segment gets and where views are.

    Args:
        world: memory with the observed views, and the pipeline.
        path: poses and camera.
        settings: of the loop.
        console: for the output.
        prompt, seed, clearance: see `WorldModel.imagine`.
        progress: show a progress bar.

    Raises:
        InputError, ModelError: see `reconstruction.loop.imagine_place`.
    """
    from rich.progress import track

    from worldstereo_ros.reconstruction.loop import describe_checks, imagine_place

    options: dict[str, Any] = {} if settings.segment is None else {"segment": settings.segment}
    views = imagine_place(
        world,
        path.poses,
        path.camera,
        captures=settings.captures,
        update=settings.update,
        prompt=prompt,
        seed=seed,
        clearance=clearance,
        **options,
    )
    done: list[LoopView] = []
    for one in track(views, description="imagining", total=len(path.poses), console=console, disable=not progress):
        done.append(one)
        if len(done) <= MAX_LISTED:
            if len(done) == 1 or one.captures != done[-2].captures:
                console.print(f"From view {one.view.index} on: {_captures_sentence(one.captures)}", highlight=False)
            console.print(f"  view {one.view.index}: {one.check}", highlight=False)
    if len(done) > MAX_LISTED:
        console.print(f"  and {len(done) - MAX_LISTED} more views; results.json lists all.", highlight=False)
    for line in describe_checks(done):
        console.print(line, highlight=False)
    return done


def loop_results(views: Sequence[LoopView], settings: LoopSettings) -> dict[str, Any]:
    """What results.json holds of the loop; numbers of captures count the observed views from 0."""
    checks = []
    for one in views:
        check = None if one.check is None else {**asdict(one.check), "located": one.check.located}
        checks.append({
            "segment": one.segment,
            "captures": list(one.captures),
            "in_geometry": one.in_geometry,
            "check": check,
        })  # fmt: skip
    return {"loop": {"captures": settings.captures, "update": settings.update, "views": checks}}


def _captures_sentence(captures: Sequence[int]) -> str:
    return f"observed view{'s' if len(captures) > 1 else ''} {', '.join(str(index) for index in captures)}"
