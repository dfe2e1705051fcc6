"""Triangle meshes as PLY and glTF, with colours, normals and provenance of their vertices.

glTF wants linear colours: they are converted with 16 bits, so that the 8-bit colours come back as they were. Materials
are unlit, because the colours of photographs hold the light already.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.gltf import TRIANGLES, GltfError, GltfFile, GltfWriter, check_placement, node_rotation
from worldstereo_ros.utils.atomic_files import atomic_file
from worldstereo_ros.utils.errors import InputError, WorldStereoError

SUFFIXES = (".ply", ".glb", ".gltf")
MAX_TRIANGLES = 200_000_000
MAX_HEADER_BYTES = 64 * 1024
_UNLIT = "KHR_materials_unlit"
_ARBITRARY_UNIT = "worldstereo metric false"
# Properties of a vertex in a PLY of this package.
_PLY_FIELDS = {
    "x": "<f4", "y": "<f4", "z": "<f4", "nx": "<f4", "ny": "<f4", "nz": "<f4",
    "red": "u1", "green": "u1", "blue": "u1", "provenance": "u1",
}  # fmt: skip
_PLY_TYPES = {"<f4": "float", "u1": "uchar"}
_PLY_SIZES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4",
    "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4",
    "float32": "<f4", "float64": "<f8",
}  # fmt: skip


class MeshFileError(WorldStereoError, ValueError):
    """A mesh file that cannot be read or written."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world frame.

    Attributes:
        vertices: (V, 3) float32, metres (or the unit of the place, if `metric` is False).
        triangles: (T, 3) int32 indices of vertices; counter-clockwise where seen from outside.
        colours: (V, 3) uint8 RGB.
        normals: (V, 3) float32 unit vectors; None if unknown.
        provenance: (V,) uint8 values of `Provenance`; None if unknown.
        metric: lengths are in metres.

    Raises:
        InputError: shapes do not fit, a number is not finite, or a triangle has a vertex that is not there.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    colours: np.ndarray
    normals: np.ndarray | None = None
    provenance: np.ndarray | None = None
    metric: bool = True

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.vertices))
        columns = {"vertices": (3, np.float32), "colours": (3, np.uint8), "normals": (3, np.float32)}
        for name, (width, dtype) in {**columns, "provenance": (0, np.uint8)}.items():
            if (array := getattr(self, name)) is None:
                continue
            shape = (count, width) if width else (count,)
            if np.shape(array) != shape:
                raise InputError(f"The mesh's {name} have shape {np.shape(array)}; {shape} was expected.")
            array = np.ascontiguousarray(array, dtype)
            if not np.isfinite(array).all():
                raise InputError(f"The mesh's {name} have numbers that are not finite.")
            object.__setattr__(self, name, array)
        triangles = np.asarray(self.triangles)
        if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype.kind not in "iu":
            raise InputError(
                f"The triangles are {triangles.dtype} of shape {triangles.shape}; integers (T, 3) expected."
            )
        if triangles.size and not 0 <= int(triangles.min()) <= int(triangles.max()) < count:
            raise InputError(f"A triangle has vertex {int(triangles.max())}; the mesh has {count} vertices.")
        object.__setattr__(self, "triangles", np.ascontiguousarray(triangles, np.int32))


def write_mesh(path: str | Path, mesh: Mesh, *, up: np.ndarray | None = None) -> None:
    """Writes a mesh atomically; the format follows from the suffix.

    Args:
        path: .ply (binary), .glb or .gltf file.
        mesh: at least one triangle.
        up: (3,) up direction of the world; a glTF viewer shows it upwards then. A PLY has no such field.

    Raises:
        MeshFileError: another suffix, or no triangles.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    if len(mesh.triangles) == 0:
        raise MeshFileError(f"The mesh has no triangles, so {path} was not written.")
    if path.suffix.lower() == ".ply":
        _write_ply(path, mesh)
        return
    try:
        _gltf(mesh, up).write(path)
    except GltfError as error:
        raise MeshFileError(str(error)) from error


def read_mesh(path: str | Path) -> Mesh:
    """Reads a mesh; the format follows from the suffix. Vertices without colours are light grey.

    Raises:
        MeshFileError: another suffix, no mesh of triangles, or a damaged or truncated file.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        return _read_ply(path) if path.suffix.lower() == ".ply" else _read_gltf(path)
    except (GltfError, InputError) as error:
        raise MeshFileError(f"{path} holds no valid mesh: {error}") from error
    except OSError as error:
        raise MeshFileError(f"{path} cannot be read: {error.strerror}.") from error


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise MeshFileError(f"{path} has the suffix '{path.suffix}'; one of {', '.join(SUFFIXES)} was expected.")


# --- PLY --------------------------------------------------------------------------------------------------------------


def _write_ply(path: Path, mesh: Mesh) -> None:
    columns = {axis: mesh.vertices[:, at] for at, axis in enumerate("xyz")}
    if mesh.normals is not None:
        columns |= {name: mesh.normals[:, at] for at, name in enumerate(("nx", "ny", "nz"))}
    columns |= {name: mesh.colours[:, at] for at, name in enumerate(("red", "green", "blue"))}
    if mesh.provenance is not None:
        columns["provenance"] = mesh.provenance
    vertices = np.empty(len(mesh.vertices), [(name, _PLY_FIELDS[name]) for name in columns])
    for name, values in columns.items():
        vertices[name] = values
    faces = np.empty(len(mesh.triangles), [("count", "u1"), ("vertices", "<i4", 3)])
    faces["count"], faces["vertices"] = 3, mesh.triangles
    lines = ["ply", "format binary_little_endian 1.0", *([] if mesh.metric else [f"comment {_ARBITRARY_UNIT}"])]
    lines += [f"element vertex {len(vertices)}"]
    lines += [f"property {_PLY_TYPES[_PLY_FIELDS[name]]} {name}" for name in columns]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    with atomic_file(path) as file:
        file.write("\n".join(lines).encode())
        file.write(vertices.view(np.uint8).data)
        file.write(faces.view(np.uint8).data)


def _read_ply(path: Path) -> Mesh:
    """Reads a binary little-endian PLY: vertices with single numbers, then triangles."""
    content = path.read_bytes()
    end = content.find(b"end_header\n", 0, MAX_HEADER_BYTES)
    lines = [line.split() for line in content[: max(end, 0)].decode("latin-1").splitlines()]
    if end < 0 or lines[:1] != [["ply"]]:
        raise MeshFileError(f"{path} has no PLY header.")
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise MeshFileError(f"{path} is not a binary little-endian PLY, which alone is read as a mesh.")
    elements = [at for at, words in enumerate(lines) if words[:1] == ["element"]]
    parts = [lines[at][1] for at in elements if len(lines[at]) == 3 and lines[at][2].isdecimal()]
    if parts[:2] != ["vertex", "face"] or len(parts) != len(elements):
        raise MeshFileError(f"{path} has the elements {', '.join(parts)}; vertex and face were expected.")
    count, faces_count = (int(lines[at][2]) for at in elements[:2])
    rows = [words for words in lines[elements[0] : elements[1]] if words[:1] == ["property"]]
    lists = [w for w in lines[elements[1] : (*elements, len(lines))[2]] if w[:1] == ["property"]]
    if any(len(words) != 3 or words[1] not in _PLY_SIZES for words in rows) or not {"x", "y", "z"} <= {
        w[-1] for w in rows
    }:
        raise MeshFileError(f"{path} has vertices of other properties than numbers, or without x, y, z.")
    if len(lists) != 1 or len(lists[0]) != 5 or lists[0][2] not in ("uchar", "uint8"):
        raise MeshFileError(f"{path} has faces of another layout than one list of vertices.")
    index_type = {"int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4"}.get(lists[0][3])
    if index_type is None or max(count, faces_count) > MAX_TRIANGLES:
        raise MeshFileError(f"{path} has indices of type {lists[0][3]}, or more than {MAX_TRIANGLES:,} triangles.")
    vertex_type = np.dtype([(words[2], _PLY_SIZES[words[1]]) for words in rows])
    face_type = np.dtype([("count", "u1"), ("vertices", index_type, 3)])
    start = end + len(b"end_header\n")
    if start + count * vertex_type.itemsize + faces_count * face_type.itemsize > len(content):
        raise MeshFileError(f"{path} declares {count:,} vertices and {faces_count:,} triangles; it is truncated.")
    vertices = np.frombuffer(content, vertex_type, count, start)
    faces = np.frombuffer(content, face_type, faces_count, start + count * vertex_type.itemsize)
    if (faces["count"] != 3).any():
        raise MeshFileError(f"{path} has faces of {faces['count'].max()} vertices; triangles were expected.")

    names = [words[-1] for words in rows]

    def stacked(*fields: str) -> np.ndarray | None:
        there = [vertices[name] for name in fields if name in names]
        return np.stack(there, axis=1) if len(there) == len(fields) else None

    colours, points = stacked("red", "green", "blue"), stacked("x", "y", "z")
    assert points is not None  # checked above
    kinds = vertices["provenance"] if "provenance" in names else None
    return Mesh(
        points,
        faces["vertices"].astype(np.int64),
        np.full((count, 3), 190, np.uint8) if colours is None or colours.dtype != np.uint8 else colours,
        stacked("nx", "ny", "nz"),
        kinds if kinds is not None and np.isin(kinds, [int(kind) for kind in Provenance]).all() else None,
        metric=["comment", *_ARBITRARY_UNIT.split()] not in lines,
    )


# --- glTF -------------------------------------------------------------------------------------------------------------


def encode_glb(mesh: Mesh) -> bytes:
    """The content of a .glb file of a mesh, in world coordinates."""
    return _gltf(mesh, None).encode()


def _gltf(mesh: Mesh, up: np.ndarray | None) -> GltfWriter:
    writer = GltfWriter()
    attributes = {"POSITION": writer.add(mesh.vertices, limits=True)}
    if mesh.normals is not None:
        attributes["NORMAL"] = writer.add(mesh.normals)
    attributes["COLOR_0"] = writer.add(_LINEAR[mesh.colours], normalized=True)
    if mesh.provenance is not None:
        attributes["_PROVENANCE"] = writer.add(mesh.provenance)
    indices = writer.add(mesh.triangles.astype(np.uint32).reshape(-1), target=34963)
    node: dict = {"mesh": 0, "name": "mesh", "extras": {"metric": mesh.metric}}
    if up is not None:
        node["rotation"] = node_rotation(up)
        node["extras"]["world_up"] = [float(value) for value in up]
    writer.document |= {
        "extensionsUsed": [_UNLIT],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"mode": TRIANGLES, "attributes": attributes, "indices": indices, "material": 0}]}],
        # Surfaces that were seen from one side only are open: without the other side they vanish from behind.
        "materials": [
            {"doubleSided": True, "extensions": {_UNLIT: {}}, "pbrMetallicRoughness": {"metallicFactor": 0.0}}
        ],
    }
    return writer


def _read_gltf(path: Path) -> Mesh:
    file = GltfFile(path)
    found = [(p, node) for p, node in file.primitives() if p.get("mode", TRIANGLES) == TRIANGLES and "indices" in p]
    if len(found) != 1:
        raise MeshFileError(f"{path} has {len(found)} primitives of triangles; one was expected.")
    primitive, node = found[0]
    check_placement(file, node)
    attributes = primitive.get("attributes", {})
    vertices = file.array(attributes.get("POSITION"), 3)
    indices = file.array(primitive["indices"], 1).astype(np.int64)
    colours = np.full((len(vertices), 3), 190, np.uint8)
    if "COLOR_0" in attributes:
        kind = file.document["accessors"][attributes["COLOR_0"]].get("type")
        linear = file.array(attributes["COLOR_0"], 4 if kind == "VEC4" else 3)[:, :3]
        colours = np.searchsorted(_LIMITS, np.rint(np.clip(linear, 0, 1) * 65535)).astype(np.uint8)
    normals = file.array(attributes["NORMAL"], 3) if "NORMAL" in attributes else None
    kinds = file.array(attributes["_PROVENANCE"], 1) if "_PROVENANCE" in attributes else None
    if len(indices) % 3:
        raise MeshFileError(f"{path} has {len(indices)} indices, which are no triangles.")
    extras = node.get("extras") or {}
    metric = extras.get("metric", True) is not False
    return Mesh(vertices, indices.reshape(-1, 3), colours, normals, kinds, metric=metric)


def _linear_levels() -> np.ndarray:
    """(256,) uint16: the light of each 8-bit sRGB value (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    return np.rint(65535 * np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)).astype(
        np.uint16
    )


_LINEAR = _linear_levels()
_LIMITS = 0.5 * (_LINEAR[:-1].astype(np.float64) + _LINEAR[1:])  # between neighbouring levels
