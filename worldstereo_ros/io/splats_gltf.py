"""Gaussian splats as glTF with the extension KHR_gaussian_splatting: a primitive of points with further attributes.

Scales and opacities are stored as they are, rotations as x, y, z, w. Colours of splats that were fitted to photographs
are display colours, which the extension calls srgb_rec709_display. Viewers without the extension show the points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.gltf import POINTS, GltfFile, GltfWriter, check_placement, node_rotation
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.utils.errors import InputError

EXTENSION = "KHR_gaussian_splatting"
_DISPLAY = "srgb_rec709_display"
_COLUMNS = {"ROTATION": 4, "SCALE": 3, "OPACITY": 1}


def write_splats_gltf(path: Path, splats: GaussianSplats, *, up: np.ndarray | None = None) -> None:
    """Writes a .glb or .gltf file.

    Args:
        path: the file.
        splats: at least one.
        up: (3,) up direction of the world, which the node turns upwards; the arrays keep the world frame.

    Raises:
        GltfError: another suffix, or too many splats for one file.
        WriteError: the file cannot be written.
    """
    writer = GltfWriter()
    attributes = {"POSITION": writer.add(splats.means, limits=True)}
    colours = np.concatenate([splats.colours, np.rint(255 * splats.opacities)[:, None].astype(np.uint8)], axis=1)
    attributes["COLOR_0"] = writer.add(colours, normalized=True)
    attributes["_PROVENANCE"] = writer.add(splats.provenance)
    quaternions = np.ascontiguousarray(splats.quaternions[:, [1, 2, 3, 0]])
    for name, array in {"ROTATION": quaternions, "SCALE": splats.scales, "OPACITY": splats.opacities}.items():
        attributes[f"{EXTENSION}:{name}"] = writer.add(array)
    for index, name in enumerate(_harmonic_names(splats.harmonics.shape[1])):
        attributes[name] = writer.add(splats.harmonics[:, index])
    primitive = {
        "mode": POINTS,
        "attributes": attributes,
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": _DISPLAY}},
    }
    node: dict = {"mesh": 0, "name": "splats", "extras": {"metric": splats.metric}}
    if up is not None:
        node |= {"rotation": node_rotation(up), "extras": {"metric": splats.metric, "world_up": [float(v) for v in up]}}
    writer.document |= {
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [primitive]}],
    }
    writer.write(path)


def read_splats_gltf(path: Path) -> GaussianSplats:
    """Reads the splats of a .glb or .gltf file that has one primitive of them.

    Raises:
        GltfError: the file is damaged, or moves its content by a transform.
        InputError: it holds no splats or several sets, of another kernel, or invalid numbers.
    """
    file = GltfFile(path)
    found = [(p, node) for p, node in file.primitives() if EXTENSION in (p.get("extensions") or {})]
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} primitives of Gaussian splats ({EXTENSION}); one was expected.")
    primitive, node = found[0]
    check_placement(file, node)
    settings = primitive["extensions"][EXTENSION]
    if not isinstance(settings, dict) or settings.get("kernel") != "ellipse" or settings.get("extensions"):
        raise InputError(f"{path} has splats of another kernel than 'ellipse', or compressed ones; they are not read.")
    if settings.get("colorSpace", _DISPLAY) != _DISPLAY:
        raise InputError(f"{path} has the colours {settings['colorSpace']!r}; {_DISPLAY!r} was expected.")
    attributes = primitive.get("attributes", {})
    arrays = {}
    for name, columns in _COLUMNS.items():
        arrays[name] = file.array(attributes.get(f"{EXTENSION}:{name}"), columns)
    means = file.array(attributes.get("POSITION"), 3)
    count = 0
    while count < 16 and _harmonic_names(count + 1)[-1] in attributes:
        count += 1
    harmonics = np.stack([file.array(attributes[name], 3) for name in _harmonic_names(count)], 1) if count else means
    kinds = np.full(len(means), Provenance.UNKNOWN, np.uint8)
    if "_PROVENANCE" in attributes:
        kinds = file.array(attributes["_PROVENANCE"], 1).astype(np.uint8)
    extras = node.get("extras") or {}
    return GaussianSplats(
        means,
        arrays["ROTATION"][:, [3, 0, 1, 2]],
        arrays["SCALE"],
        arrays["OPACITY"],
        harmonics,
        kinds,
        metric=extras.get("metric", True) is not False,
    )


def _harmonic_names(count: int) -> list[str]:
    """Names of the first `count` coefficients: degree by degree."""
    names = [f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{n}" for degree in range(4) for n in range(2 * degree + 1)]
    return names[:count]
