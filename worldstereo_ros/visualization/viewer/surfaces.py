"""Splats and meshes of the page: found in a folder, read, thinned for the browser, and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.gltf import GltfFile
from worldstereo_ros.io.meshes import Mesh, MeshFileError, encode_glb, read_mesh
from worldstereo_ros.io.point_cloud_formats import MAX_HEADER_BYTES
from worldstereo_ros.io.splats import read_splats
from worldstereo_ros.io.splats_gltf import EXTENSION
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.visualization.viewer.points import colour_points

if TYPE_CHECKING:
    import viser

SPLAT_FILES = ("splats.ply", "splats.spz", "splats.glb", "splats.gltf")
MESH_FILES = ("mesh.glb", "mesh.gltf", "mesh.ply")
MAX_SPLATS = 250_000  # sent to a browser: 8 MB, which it sorts for every frame
MIN_SIGMA = 0.02  # the page stores covariances with 16 bits; the median splat is drawn at least this large

Surface = tuple[GaussianSplats | None, Mesh | None]


def find_surfaces(folder: Path) -> list[Path]:
    """The files of splats and of a mesh in a folder: the first of each that is there."""
    kinds = (SPLAT_FILES, MESH_FILES)
    found = (next((folder / name for name in names if (folder / name).is_file()), None) for names in kinds)
    return [path for path in found if path is not None]


def read_surface(path: Path) -> Surface | None:
    """Reads a file of splats or a mesh.

    Returns:
        (splats, None) or (None, mesh); None for a file that is neither by its suffix and its header. The meshes of
        .ply files, which may be clouds, are read by `read_faces`.

    Raises:
        SplatFileError, MeshFileError, GltfError: the file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".spz":
        return read_splats(path), None
    if suffix in (".glb", ".gltf"):
        file = GltfFile(path)
        is_splats = any(EXTENSION in (primitive.get("extensions") or {}) for primitive, _ in file.primitives())
        return (read_splats(path), None) if is_splats else (None, read_mesh(path))
    if suffix == ".ply":
        with path.open("rb") as opened:
            header = opened.read(MAX_HEADER_BYTES).split(b"end_header", 1)[0]
        if b" f_dc_0" in header and b" rot_3" in header:
            return read_splats(path), None
    return None


def read_faces(path: Path, colours: np.ndarray, notes: list[str]) -> Mesh | None:
    """The mesh of a .ply file whose vertices were read as a cloud; None if it has no triangles.

    Args:
        path: the file.
        colours: (V, 3) uint8 of the vertices, which a cloud reader knows in more forms.
        notes: gets a sentence if there are faces that cannot be shown.
    """
    with path.open("rb") as opened:
        header = opened.read(MAX_HEADER_BYTES).split(b"end_header", 1)[0]
    if path.suffix.lower() != ".ply" or b"element face " not in header or b"element face 0\n" in header:
        return None
    try:
        mesh = read_mesh(path)
    except MeshFileError as error:
        notes.append(f"Its faces are not shown: {error}")
        return None
    return replace(mesh, colours=colours) if len(colours) == len(mesh.vertices) else mesh


def surface_points(splats: GaussianSplats | None, mesh: Mesh | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, colours, provenance) that stand for a surface: centres of splats, or vertices of a mesh."""
    if splats is not None:
        return splats.means, splats.colours, splats.provenance
    assert mesh is not None
    unknown = np.full(len(mesh.vertices), Provenance.UNKNOWN, np.uint8)
    return mesh.vertices, mesh.colours, unknown if mesh.provenance is None else mesh.provenance


class SurfaceNodes:
    """The splats and the mesh in the scene. Call `refresh` after a change of the attributes below.

    Attributes:
        splats: (handle, class) of the nodes of splats, one for each class of provenance.
        mesh: handle of the mesh, or None.
        splat_count: number of splats that were sent to the browser.
        show_splats, show_mesh: visibility.
    """

    def __init__(self, server: viser.ViserServer, splats: GaussianSplats | None, mesh: Mesh | None) -> None:
        self._scene = server.scene
        self._splats = None if splats is None else _largest(splats, MAX_SPLATS)
        self.splat_count = 0 if self._splats is None else len(self._splats)
        self.show_splats = self._splats is not None
        self.show_mesh = mesh is not None and not self.show_splats
        self.splats: list[tuple[Any, Provenance]] = []
        self.mesh: Any = None
        if mesh is not None:
            self.mesh = server.scene.add_glb("/mesh", encode_glb(mesh), cast_shadow=False, receive_shadow=False)

    def recolour(self, colouring: str) -> None:
        """Draws the splats in one of `COLOURINGS`."""
        splats = self._splats
        if splats is None:
            return
        self.splats = []
        # The page holds covariances with 16 bits: in a small unit it draws everything larger, and the node smaller.
        factor = max(1.0, MIN_SIGMA / max(float(np.median(splats.scales.max(axis=1))), 1e-9))
        for kind in map(Provenance, np.unique(splats.provenance)[::-1]):
            part = splats.subset(splats.provenance == kind)
            colours = colour_points(part.colours, part.provenance, colouring)
            handle = self._scene.add_gaussian_splats(
                f"/splats/{kind.name.lower()}",
                part.means * np.float32(factor),
                part.covariances * np.float32(factor**2),
                colours.astype(np.float32) / 255,
                part.opacities[:, None],
                scale=1 / factor,
            )
            self.splats.append((handle, kind))

    def refresh(self, shown_classes: set[Provenance]) -> None:
        """Shows and hides the nodes; of the splats those of the classes."""
        for handle, kind in self.splats:
            handle.visible = self.show_splats and kind in shown_classes
        if self.mesh is not None:
            self.mesh.visible = self.show_mesh


def _largest(splats: GaussianSplats, count: int) -> GaussianSplats:
    """At most `count` splats: those that hide most."""
    if len(splats) <= count:
        return splats
    sides = np.sort(splats.scales, axis=1)
    weight = splats.opacities * sides[:, 1] * sides[:, 2]
    return splats.subset(np.sort(np.argpartition(-weight, count)[:count]))
