"""Preview of a camera path: what memory alone shows along it, before anything is imagined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.video import write_video
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.utils.atomic_files import check_writable
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.visualization.contact_sheet import contact_sheet

SHEET_COLUMNS, SHEET_ROWS = 4, 3
FRAMES_PER_SECOND = 8
SUFFIXES = (".gif", ".mp4", ".png", ".jpg")


def check_preview(path: Path) -> None:
    """Checks that a preview can be written, before what it shows is computed.

    Raises:
        InputError: another suffix than `SUFFIXES`.
        WriteError: the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"A preview is written as {', '.join(SUFFIXES)}; {path} has the suffix '{path.suffix}'.")
    check_writable(path)


def preview_path(
    path: str | Path,
    render_memory: Callable[[Camera, np.ndarray], Rendering],
    camera: Camera,
    world_from_camera: np.ndarray,
    *,
    title: str = "preview: memory along the path",
) -> np.ndarray:
    """Renders memory along a path and writes it as a moving picture or a contact sheet.

    The frames are those that condition the imagined views, pixel for pixel: the same function renders both.

    Args:
        path: .gif or .mp4 (all poses), .png or .jpg (a sheet of at most 12).
        render_memory: `WorldModel.render_memory`, or a function like it.
        camera: camera of the views that will be imagined.
        world_from_camera: (F, 4, 4).
        title: heading of a sheet.

    Returns:
        (F, H, W, 3) uint8 frames; holes are mid-grey.

    Raises:
        InputError: another suffix, or invalid poses.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    check_preview(path)
    poses = check_poses(world_from_camera)
    renders = [render_memory(camera, pose[None]) for pose in poses]  # one at a time bounds the memory
    frames = np.stack([render.colour[0].cpu().numpy() for render in renders])
    if path.suffix.lower() in (".gif", ".mp4"):
        write_video(path, list(frames), FRAMES_PER_SECOND)
        return frames
    shown = evenly_spaced_indices(len(frames), SHEET_COLUMNS * SHEET_ROWS)
    rows = [list(shown[at : at + SHEET_COLUMNS]) for at in range(0, len(shown), SHEET_COLUMNS)]
    cells: list[list[np.ndarray | None]] = [[frames[i] for i in row] for row in rows]
    for cell_row in cells:
        cell_row += [None] * (min(SHEET_COLUMNS, len(shown)) - len(cell_row))
    covered = [float(render.covered.float().mean()) for render in renders]
    names = [f"{row[0] + 1} to {row[-1] + 1}\n{np.mean([covered[i] for i in row]):.0%} known" for row in rows]
    sheet = contact_sheet(cells, [""] * len(cells[0]), names, title=title, subtitle=f"{len(frames)} poses")
    write_image(path, sheet)
    return frames
