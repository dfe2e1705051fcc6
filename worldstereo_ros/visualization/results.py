"""The results of a run as a folder: sequences, video, contact sheet, cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.io.images import write_image
from worldstereo_ros.io.point_clouds import write_point_cloud
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.indices import evenly_spaced_indices
from worldstereo_ros.visualization.cloud_overview import cloud_overview
from worldstereo_ros.visualization.contact_sheet import contact_sheet
from worldstereo_ros.visualization.images import provenance_legend, provenance_overlay
from worldstereo_ros.visualization.result_files import IMAGINED_FOLDER, MAP_FILE, OBSERVED_FOLDER

__all__ = ["MAP_FILE", "view_contact_sheet", "write_results"]


def view_contact_sheet(
    imagined: Sequence[ImaginedView],
    observed_views: Sequence[View],
    ground_truth: Sequence[np.ndarray] | None = None,
    *,
    model: str = "",
    other_models: Mapping[str, Sequence[View]] | None = None,
    rows: int = 6,
    title: str = "input, memory, imagined views and their provenance",
    subtitle: str = "",
) -> np.ndarray:
    """Draws views of a path: input, memory only, imagined by each model, provenance, ground truth.

    Args:
        imagined: the views of one path, in order.
        observed_views: the views that a camera took; evenly spaced ones fill the first column from top to bottom.
        ground_truth: (H, W, 3) uint8 for each imagined view, where it is known.
        model: name of the model that imagined the views; empty to leave it out.
        other_models: views that other models imagined along the same path, by name. Columns are sorted by name.
        rows: number of views, evenly spaced, the first and the last included.
        title: heading of the sheet.
        subtitle: line below the heading.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: another model has more or fewer views.
    """
    shown = evenly_spaced_indices(len(imagined), rows)
    shown_observed = np.linspace(0, len(observed_views) - 1, len(shown)).round().astype(int)
    by_model = dict(sorted({**(other_models or {}), model: imagined}.items()))
    for name, views in by_model.items():
        if len(views) != len(imagined):
            raise InputError(f"{name} has {len(views)} views; {len(imagined)} were expected, one for each pose.")
    count = len(observed_views)
    columns = [
        f"input ({count} view{'s' if count > 1 else ''})",
        "memory only",
        *(f"imagined ({name})" if name else "imagined" for name in by_model),
        "provenance",
    ]
    if ground_truth is not None:
        columns.append("ground truth")
    shown_classes = {Provenance(kind) for index in shown for kind in np.unique(imagined[index].provenance)}
    cells, row_titles = [], []
    for row, index in enumerate(shown):
        view = imagined[index]
        images = [observed_views[shown_observed[row]].image, view.conditioning]
        images += [views[index].image for views in by_model.values()]
        images.append(provenance_overlay(view.image, view.provenance))
        if ground_truth is not None:
            images.append(ground_truth[index])
        cells.append(images)
        row_titles.append(f"view {index + 1}/{len(imagined)}\n{view.observed_fraction:.0%} observed")
        if Provenance.ESTIMATED in shown_classes:
            row_titles[-1] += f"\n{view.estimated_fraction:.0%} estimated"
    legend = provenance_legend(shown_classes)
    return contact_sheet(cells, columns, row_titles, title=title, subtitle=subtitle, legend=legend)


def write_results(
    folder: Path,
    imagined: Sequence[ImaginedView],
    observed_views: Sequence[View],
    cloud: CloudMemory,
    ground_truth: Sequence[np.ndarray] | None = None,
    *,
    title: str,
    subtitle: str = "",
    model: str = "",
    other_models: Mapping[str, Sequence[View]] | None = None,
    fps: float = 8,
) -> None:
    """Writes the results of a run: imagined/ and observed/ (posed sequences), a video, a contact sheet, the cloud.

    The archive of the memories (`MAP_FILE`) is not written; it belongs in the same folder.

    Args:
        folder: created if it is missing.
        imagined: the views of one path, in order.
        observed_views: the views that a camera took; with the estimated depth of those without measured depth, if it is
            to be written.
        cloud: the cloud memory, written as cloud.ply and drawn as cloud.png, without imagined points that are unsure.
        ground_truth: see `view_contact_sheet`.
        title: heading of the contact sheet.
        subtitle: line below the heading.
        model: see `view_contact_sheet`.
        other_models: see `view_contact_sheet`.
        fps: frames per second of the video, which shows each view beside its provenance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_sequence(folder / IMAGINED_FOLDER, imagined)
    write_sequence(folder / OBSERVED_FOLDER, observed_views)
    sheet = view_contact_sheet(
        imagined,
        observed_views,
        ground_truth,
        model=model,
        other_models=other_models,
        title=title,
        subtitle=subtitle,
    )
    write_image(folder / "contact_sheet.png", sheet)
    frames = [
        np.concatenate([view.image, provenance_overlay(view.image, view.provenance)], axis=1)[
            : view.camera.height // 2 * 2, : view.camera.width // 2 * 4
        ]
        for view in imagined
    ]
    write_video(folder / "imagined.mp4", frames, fps)
    write_point_cloud(cloud, folder / "cloud.ply")
    path = np.stack([view.world_from_camera for view in imagined])
    up = estimate_up_direction(np.stack([view.world_from_camera for view in observed_views]))
    arrays = (cloud.points, cloud.colours, cloud.provenance, cloud.spacing)
    overview = cloud_overview(*arrays, path, up=up, depth_confidence=cloud.depth_confidence)
    write_image(folder / "cloud.png", overview)
