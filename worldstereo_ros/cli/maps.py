"""Saved maps as the source of `worldstereo imagine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from worldstereo_ros.cli.sources import Recording
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.memory.archive import Archive

METRE_OPTIONS = "--distance and --clearance are in its unit, too"


def read_map(path: Path) -> tuple[Archive, Recording]:
    """Reads a saved map, or that of a folder of results: its memories, and its observations as a recording.

    Raises:
        ArchiveError: the map is missing or damaged.
        InputError: it has no observation.
    """
    from worldstereo_ros.memory.archive import load_archive
    from worldstereo_ros.visualization.result_files import MAP_FILE

    file = path / MAP_FILE if path.is_dir() else path
    archive = load_archive(file)
    views = [view for view in archive.bank.views if view.is_observation]
    if not views:
        raise InputError(f"The map {file} has no observed view to start from. Observe the place first.")
    notes = []
    if archive.bank.metric is False:
        notes.append(f"The unit of {file.name} is arbitrary: its lengths are not in metres; {METRE_OPTIONS}.")
    return archive, Recording(file.name, views, lambda name: None, camera_origin="recorded", notes=notes)


def check_only_map(map_file: Path | None, **options: object) -> None:
    """Raises InputError if options of sources (name -> value, empty if not given) are given together with a map."""
    given = [name for name, value in options.items() if value not in (None, "", 0, False)]
    if map_file is not None and given:
        raise InputError(
            f"--map continues with what is remembered in {map_file}; {', '.join(given)} is for another source. Remove "
            "one of them."
        )
