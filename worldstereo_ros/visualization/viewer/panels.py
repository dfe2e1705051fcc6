"""The words and pictures of the page: what is shown, what the colours mean, and the pictures of the selected view."""

from __future__ import annotations

import base64
import html

import cv2
import numpy as np

from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR, depth_image, provenance_overlay
from worldstereo_ros.visualization.viewer.loading import Viewable
from worldstereo_ros.visualization.viewer.scene import PATH_COLOUR


def summary(viewable: Viewable, shown: int) -> str:
    """HTML: what is shown, how much of it is imagined, and what the colours mean."""
    total = len(viewable.points)
    parts = [f"<b>{html.escape(viewable.name)}</b> ({viewable.kind})"]
    if total:
        cut = f", {shown:,} of them sent to this page" if shown < total else ""
        parts.append(f"{total:,} points{cut}.")
    observed = float(viewable.observed.mean()) if total else 0.0
    share = f": {observed:.0%} of the points" if viewable.provenance_known and total else ""
    rows = [_dot(OBSERVED_COLOUR, f"<b>Observed</b>{share}. A sensor saw it.")]
    if viewable.imagined or (total and observed < 1):
        share = f": {1 - observed:.0%} of the points" if total else ""
        rows.append(_dot(IMAGINED_COLOUR, f"<b>Imagined</b>{share}. The model made it up; do not rely on it."))
    if len(viewable.path) > 1:
        rows.append(_dot(PATH_COLOUR, "<b>Path</b> and, larger, the camera of the selected view."))
    notes = "".join(paragraph(html.escape(note), faint=True) for note in viewable.notes)
    return paragraph("<br>".join(parts)) + "".join(rows) + notes


def pictures_of(view: View) -> list[tuple[np.ndarray, str]]:
    """[(picture (H, W, 3) uint8, what it shows)]: image, and conditioning, mask and depth where the view has them."""
    imagined = isinstance(view, ImaginedView) or view.observed is not None
    pictures = [(view.image, "Imagined view" if imagined else "What the camera saw")]
    if isinstance(view, ImaginedView) and view.conditioning is not None:
        pictures.append((view.conditioning, "What memory alone gives"))
    if view.observed is not None:
        caption = f"{view.observed.mean():.0%} observed (blue)"
        pictures.append((provenance_overlay(view.image, view.observed), caption))
    if view.depth is not None:
        known = view.depth[view.depth > 0]
        reach = " {:.1f} to {:.1f} m".format(*np.percentile(known, (1, 99))) if len(known) else ""
        pictures.append((depth_image(view.depth), f"Depth{reach}"))
    return pictures


def strip(view: View) -> str:
    """HTML: the pictures of a view side by side, each with a line that says what it is."""
    figures = "".join(
        f'<figure style="flex:1 1 0;min-width:0;margin:0"><img style="width:100%;display:block;border-radius:4px" '
        f'src="data:image/jpeg;base64,{_jpeg(picture)}" alt="{caption}">'
        f'<figcaption style="font-size:12px;padding-top:4px">{caption}</figcaption></figure>'
        for picture, caption in pictures_of(view)
    )
    return f'<div style="display:flex;gap:8px;padding:8px">{figures}</div>'


def _jpeg(picture: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return base64.b64encode(data.tobytes()).decode()


def paragraph(content: str, *, faint: bool = False) -> str:
    """HTML: a few sentences (`content` is HTML itself)."""
    style = "font-size:12px;opacity:0.65" if faint else "font-size:14px"
    return f'<div style="{style};padding:3px 12px;line-height:1.4">{content}</div>'


def _dot(colour: tuple[int, int, int], content: str) -> str:
    round_ = f"flex:none;width:12px;height:12px;border-radius:6px;margin-top:4px;background:rgb{colour}"
    row = "display:flex;gap:8px;font-size:14px;padding:2px 12px;line-height:1.4"
    return f'<div style="{row}"><span style="{round_}"></span><span>{content}</span></div>'
