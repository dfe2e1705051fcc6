"""What a run leaves behind: views as a posed sequence, a video, a contact sheet, the cloud and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.point_clouds import write_point_cloud
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.cloud_overview import cloud_overview
from worldstereo_ros.visualization.contact_sheet import contact_sheet
from worldstereo_ros.visualization.images import provenance_overlay

MAP_FILE = "world.wsmap"


def view_contact_sheet(
    imagined: Sequence[ImaginedView],
    given: Sequence[View],
    truth: Sequence[np.ndarray] | None = None,
    *,
    name: str = "imagined",
    beside: Mapping[str, Sequence[View]] | None = None,
    rows: int = 6,
    title: str = "what memory gives, what is imagined, and which is which",
    subtitle: str = "",
) -> np.ndarray:
    """The contact sheet: given · memory · imagined, by one or more · observed (blue) or imagined (orange) · truth.

    Args:
        imagined: the views of one path, in order.
        given: the views that a sensor took; some of them, evenly spaced, fill the first column from top to bottom.
        truth: (H, W, 3) uint8 for each view, where it is known.
        name: heads the column of `imagined`.
        beside: what others imagined of the same path, by name, one view for each of `imagined`. Columns stand in the
            order of their names.
        rows: number of views shown, evenly spaced, the last one included.
        title, subtitle: written above.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: others imagined more or fewer views.
    """
    chosen = np.unique(np.linspace(0, len(imagined) - 1, min(rows, len(imagined))).round().astype(int))
    shown = np.linspace(0, len(given) - 1, len(chosen)).round().astype(int)
    painted = dict(sorted({**(beside or {}), name: imagined}.items()))
    for who, views in painted.items():
        if len(views) != len(imagined):
            raise InputError(f"There are {len(imagined)} views and {len(views)} of {who}; one for each was expected.")
    columns = [
        f"given ({len(given)} views)",
        "memory alone",
        *painted,
        "blue: observed, orange: imagined",
    ]
    if truth is not None:
        columns.append("truth")
    cells, names = [], []
    for row, index in enumerate(chosen):
        view = imagined[index]
        line = [given[shown[row]].image, view.conditioning, *(views[index].image for views in painted.values())]
        line.append(provenance_overlay(view.image, view.observed_mask))
        if truth is not None:
            line.append(truth[index])
        cells.append(line)
        names.append(f"view {index + 1}/{len(imagined)}\n{view.observed_fraction:.0%} observed")
    return contact_sheet(cells, columns, names, title=title, subtitle=subtitle)


def write_results(
    folder: Path,
    imagined: Sequence[ImaginedView],
    given: Sequence[View],
    cloud: CloudMemory,
    truth: Sequence[np.ndarray] | None = None,
    *,
    title: str,
    subtitle: str = "",
    name: str = "imagined",
    beside: Mapping[str, Sequence[View]] | None = None,
    fps: float = 8,
) -> None:
    """Writes everything into `folder`; the archive of the memories (`MAP_FILE`) is left to who owns them.

    `name` and `beside` are those of `view_contact_sheet`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_sequence(folder / "imagined", imagined)
    write_sequence(folder / "given", given)
    sheet = view_contact_sheet(imagined, given, truth, name=name, beside=beside, title=title, subtitle=subtitle)
    write_image(folder / "contact_sheet.png", sheet)
    frames = [
        np.concatenate([view.image, provenance_overlay(view.image, view.observed_mask)], axis=1)[
            : view.camera.height // 2 * 2, : view.camera.width // 2 * 4
        ]
        for view in imagined
    ]
    write_video(folder / "imagined.mp4", frames, fps)
    write_point_cloud(cloud, folder / "cloud.ply")
    path = np.stack([view.world_from_camera for view in imagined])
    up = estimate_up_direction(np.stack([view.world_from_camera for view in given]))
    picture = cloud_overview(cloud.points, cloud.colours, cloud.observed, cloud.spacing, path, up=up)
    write_image(folder / "cloud.png", picture)
