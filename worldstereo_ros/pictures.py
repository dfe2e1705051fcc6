"""Pictures for people: contact sheets, videos, and the cloud seen from above with the path."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.rendering.splatting.splatting import render

INK, PAPER, FAINT = (30, 34, 40), (250, 250, 248), (150, 154, 160)
OBSERVED_COLOUR, IMAGINED_COLOUR = (38, 132, 166), (226, 120, 60)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def mask_picture(image: np.ndarray, observed: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """(H, W, 3) uint8: the image greyed and tinted, blue where observed, orange where imagined."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    tint = np.where(observed[..., None], OBSERVED_COLOUR, IMAGINED_COLOUR).astype(np.float32)
    return ((1 - strength) * grey + strength * tint).astype(np.uint8)


def depth_picture(depth: np.ndarray, far: float | None = None) -> np.ndarray:
    """(H, W, 3) uint8: near is bright, far is dark, unknown is mid-grey."""
    known = depth > 0
    if far is None:
        far = float(np.percentile(depth[known], 98)) if known.any() else 1.0
    level = (255 * (1 - np.clip(depth / max(far, 1e-6), 0, 1))).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)
    picture[~known] = 128
    return picture


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    cell_width: int = 260,
) -> np.ndarray:
    """A labelled grid of pictures.

    Args:
        rows: pictures (H, W, 3) uint8 of one aspect ratio; None leaves a cell empty.
        column_titles: one for each column. row_titles: one for each row.

    Returns:
        (H, W, 3) uint8.
    """
    first = next(cell for row in rows for cell in row if cell is not None)
    cell_height = round(cell_width * first.shape[0] / first.shape[1])
    margin, gap, left, top = 24, 8, 92, 108 if subtitle else 84
    height = top + len(rows) * (cell_height + gap) + margin
    width = margin + left + len(column_titles) * (cell_width + gap) + margin - gap
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    _write(sheet, title, (margin, 38), 0.8, INK, 2)
    if subtitle:
        _write(sheet, subtitle, (margin, 62), 0.46, FAINT)
    for column, text in enumerate(column_titles):
        _write(sheet, text, (margin + left + column * (cell_width + gap), top - 12), 0.5, INK)
    for r, (row, text) in enumerate(zip(rows, row_titles, strict=True)):
        y = top + r * (cell_height + gap)
        for line_number, line in enumerate(text.split("\n")):
            _write(sheet, line, (margin, y + 20 + 20 * line_number), 0.46, INK if line_number == 0 else FAINT)
        for column, cell in enumerate(row):
            if cell is None:
                continue
            x = margin + left + column * (cell_width + gap)
            shrink = cell.shape[1] > cell_width
            small = cv2.resize(
                cell, (cell_width, cell_height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
            )
            sheet[y : y + cell_height, x : x + cell_width] = small
    return sheet


def _write(
    picture: np.ndarray, text: str, at: tuple[int, int], size: float, colour: Sequence[int], weight: int = 1
) -> None:
    cv2.putText(picture, text, at, _FONT, size, tuple(colour), weight, cv2.LINE_AA)


def cloud_picture(
    points: np.ndarray,
    colours: np.ndarray,
    observed: np.ndarray,
    spacing: np.ndarray,
    path: np.ndarray,
    *,
    up: np.ndarray,
    size: tuple[int, int] = (960, 640),
    tint: float = 0.35,
) -> np.ndarray:
    """The cloud seen from behind and above the path, ceiling cut away, imagined points tinted orange.

    Args:
        points: (N, 3) world points. colours: (N, 3) uint8. observed: (N,) bool. spacing: (N,) metres.
        path: (F, 4, 4) world_from_camera, drawn with the frusta of its cameras.
        up: (3,) unit vector, which way is up in the world.
        size: width and height in pixels.
        tint: how strongly imagined points are coloured.

    Returns:
        (H, W, 3) uint8.
    """
    up = np.asarray(up, dtype=np.float64)
    heights = points @ up
    path_height = path[:, :3, 3] @ up
    keep = heights < path_height.max() + 0.35  # a ceiling would hide everything below it
    points, colours, observed, spacing = points[keep], colours[keep], observed[keep], spacing[keep]
    colours = np.where(observed[:, None], colours, (1 - tint) * colours + tint * np.array(IMAGINED_COLOUR)).astype(
        np.uint8
    )

    camera = Camera.from_fov(*size, np.radians(50))
    view = _view_from_above(points, path, up, camera)
    rendering = render(points.astype(np.float32), colours, observed, spacing, camera, view[None])
    covered = rendering.covered[0].cpu().numpy()
    picture = np.where(covered[..., None], rendering.colour[0].cpu().numpy(), np.array(PAPER)).astype(np.uint8)
    _draw_path(picture, path, camera, view)
    return picture


def _view_from_above(points: np.ndarray, path: np.ndarray, up: np.ndarray, camera: Camera) -> np.ndarray:
    """(4, 4) a camera that looks down on the middle of the cloud from behind the path's first view."""
    centre = np.median(points, axis=0) if len(points) else path[:, :3, 3].mean(axis=0)
    extent = float(np.percentile(np.linalg.norm(points - centre, axis=1), 95)) if len(points) else 2.0
    ahead = path[0, :3, 2] - up * (path[0, :3, 2] @ up)
    ahead /= max(float(np.linalg.norm(ahead)), 1e-9)
    forward = ahead * np.cos(np.radians(50)) - up * np.sin(np.radians(50))
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    view = np.eye(4)
    view[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    view[:3, 3] = centre - forward * extent * 1.25 * camera.fx / (0.5 * camera.width)
    return view


def _draw_path(picture: np.ndarray, path: np.ndarray, camera: Camera, view: np.ndarray) -> None:
    """Draws the polyline of the path and a small frustum at every third camera."""
    uv, z = project(path[:, :3, 3], camera, view)
    pixels = uv.round().astype(int)
    for a, b in zip(range(len(path) - 1), range(1, len(path)), strict=True):
        if z[a] > 0 and z[b] > 0:
            cv2.line(picture, tuple(pixels[a].tolist()), tuple(pixels[b].tolist()), (220, 40, 60), 3, cv2.LINE_AA)
    reach = 0.35
    corners = reach * np.array([[-0.6, -0.4, 1], [0.6, -0.4, 1], [0.6, 0.4, 1], [-0.6, 0.4, 1]])
    for index in range(0, len(path), 3):
        ends = np.concatenate([path[index, None, :3, 3], corners @ path[index, :3, :3].T + path[index, :3, 3]])
        uv, z = project(ends, camera, view)
        if (z <= 0).any():
            continue
        points = [tuple(p) for p in uv.round().astype(int).tolist()]
        for corner in range(1, 5):
            cv2.line(picture, points[0], points[corner], (220, 40, 60), 1, cv2.LINE_AA)
            cv2.line(picture, points[corner], points[1 + corner % 4], (220, 40, 60), 1, cv2.LINE_AA)
