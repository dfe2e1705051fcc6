"""Labels of views on disk: provenance and confidences as PNG files beside the frames of a posed sequence.

| folder | content |
| --- | --- |
| `observed/` | 8-bit, 255 = observed, of imagined views |
| `provenance/` | palette image whose indices are the values of `Provenance` and whose colours show them |
| `confidence/` | 8-bit, 255 = 1, confidence of the colour |
| `depth_confidence/` | 8-bit, 255 = 1, confidence of the depth |

Pillow reads the indices of a palette image (`np.asarray(Image.open(path))`), OpenCV its colours.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.imaging.compressed_images import open_image
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.io.images import encode_png, read_image
from worldstereo_ros.utils.atomic_files import write_bytes

LABELS = ("observed", "provenance", "confidence", "depth_confidence")  # folders
# Colours that people with colour-blindness tell apart: grey, orange, yellow, blue (RGB).
PROVENANCE_COLOURS = {
    Provenance.UNKNOWN: (128, 128, 128),
    Provenance.IMAGINED: (226, 120, 60),
    Provenance.ESTIMATED: (244, 208, 63),
    Provenance.OBSERVED: (38, 132, 166),
}


def write_provenance(path: Path, provenance: np.ndarray) -> None:
    """Writes (H, W) uint8 values of `Provenance` as a PNG with a palette. Raises WriteError."""
    write_bytes(path, _encode_provenance(provenance))


def read_provenance(path: Path) -> np.ndarray:
    """Reads (H, W) uint8 values of `Provenance` from a PNG: indices of a palette, or grey values.

    Raises:
        ImageError: the file is missing, no single-channel image, or has values above 3.
    """
    try:
        with open_image(Path(path), f"The provenance {path}") as file:
            mode, values = file.mode, np.asarray(file)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise ImageError(f"The provenance {path} cannot be read: {error}.") from error
    if mode not in ("L", "P") or (values.size and int(values.max()) > Provenance.OBSERVED):
        raise ImageError(
            f"The provenance {path} is no image of the values 0 (unknown), 1 (imagined), 2 (estimated), 3 (observed)."
        )
    return values.astype(np.uint8)


def encode_labels(view: View) -> dict[str, bytes]:
    """Encodes the labels of a view as PNG, by the name of their folder.

    An observation has labels only if some of its depth is estimated; without labels, all of it is measured.
    """
    imagined = isinstance(view, ImaginedView) or not view.is_observation
    if not (imagined or view.estimated_mask.any()):
        return {}
    labels = {"provenance": _encode_provenance(view.provenance)}
    if imagined:
        labels["observed"] = _encode_grey(view.observed_mask.astype(np.float32))
    if view.confidence is not None:
        labels["confidence"] = _encode_grey(view.confidence)
    if view.depth_confidence is not None:
        labels["depth_confidence"] = _encode_grey(view.depth_confidence)
    return labels


def read_labels(folder: Path, number: int) -> dict[str, np.ndarray]:
    """Reads the labels of the view `number` of a posed sequence.

    Args:
        folder: folder of the sequence, which holds the folders of labels.
        number: number of the view, which names its files.

    Returns:
        The labels that the view has, by the attribute of `View`: observed and estimated (H, W) bool, confidence and
        depth_confidence (H, W) float32. Empty for an observation whose depth is measured.

    Raises:
        ImageError: a file is not an image, or has invalid values.
    """
    name = f"{number:06d}.png"
    labels: dict[str, np.ndarray] = {}
    if (file := folder / "observed" / name).is_file():
        labels["observed"] = read_image(file)[..., 0] > 127
    if (file := folder / "provenance" / name).is_file():
        provenance = read_provenance(file)
        labels["estimated"] = provenance == Provenance.ESTIMATED
        if "observed" not in labels and (provenance < Provenance.ESTIMATED).any():
            labels["observed"] = provenance == Provenance.OBSERVED
    if not labels:  # a folder `confidence` of a sensor has another meaning
        return labels
    for label in ("confidence", "depth_confidence"):
        if (file := folder / label / name).is_file():
            labels[label] = read_image(file)[..., 0].astype(np.float32) / 255
    return labels


def _encode_provenance(provenance: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(provenance, dtype=np.uint8))
    image.putpalette([level for kind in Provenance for level in PROVENANCE_COLOURS[kind]])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _encode_grey(values: np.ndarray) -> bytes:
    """Encodes (H, W) values in 0..1 as an 8-bit image, 255 = 1."""
    return encode_png(np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8))
