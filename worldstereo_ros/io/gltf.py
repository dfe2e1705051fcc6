"""Binary and JSON glTF 2.0: arrays in, arrays out. The meshes and splats of this package are stored in it.

A writer of .glb and .gltf (with its data inside, as a data URI), and a reader that checks every offset against the size
of the file before memory is allocated. Sparse and compressed accessors are refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.utils.atomic_files import write_bytes
from worldstereo_ros.utils.errors import WorldStereoError

SUFFIXES = (".glb", ".gltf")
MAX_FILE_BYTES = 4 * 2**30
MAX_JSON_BYTES = 64 * 2**20
POINTS, TRIANGLES = 0, 4  # modes of a primitive
_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_CODES = {np.dtype(code): number for number, code in _COMPONENTS.items()}
_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_DATA_URI = "data:application/octet-stream;base64,"


class GltfError(WorldStereoError, ValueError):
    """A glTF file that cannot be read or written."""


class GltfWriter:
    """Collects arrays and writes one file.

    Attributes:
        document: the JSON object; accessors, bufferViews and buffers are filled in by `add` and `write`.
    """

    def __init__(self) -> None:
        self.document: dict[str, Any] = {"asset": {"version": "2.0", "generator": "worldstereo_ros"}}
        self._accessors: list[dict[str, Any]] = []
        self._views: list[dict[str, Any]] = []
        self._data = bytearray()

    def add(self, array: np.ndarray, *, normalized: bool = False, limits: bool = False, target: int = 34962) -> int:
        """Adds an accessor.

        Args:
            array: (N,) or (N, 2), (N, 3), (N, 4) of int8, uint8, int16, uint16, uint32 or float32, N >= 1.
            normalized: integers stand for 0..1 or -1..1.
            limits: store minimum and maximum, which positions must have.
            target: 34962 for attributes of vertices, 34963 for indices.

        Returns:
            The index of the accessor.
        """
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        columns = 1 if array.ndim == 1 else array.shape[1]
        row_bytes = columns * array.dtype.itemsize
        stride = -(-row_bytes // 4) * 4 if target == 34962 else row_bytes  # vertices start at multiples of four bytes
        self._data += b"\0" * (-len(self._data) % 4)
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self._data), "target": target}
        if stride != row_bytes:
            padded = np.zeros((len(array), stride), np.uint8)
            padded[:, :row_bytes] = array.reshape(len(array), columns).view(np.uint8)
            content = padded.tobytes()
            view["byteStride"] = stride
        else:
            content = array.tobytes()
        view["byteLength"] = len(content)
        self._data += content
        kind = next(name for name, size in _TYPES.items() if size == columns)
        accessor: dict[str, Any] = {
            "bufferView": len(self._views), "componentType": _CODES[array.dtype], "count": len(array), "type": kind,
        }  # fmt: skip
        if normalized:
            accessor["normalized"] = True
        if limits:
            rows = array.reshape(len(array), columns)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self._views.append(view)
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def write(self, path: Path) -> None:
        """Writes the file, .glb or .gltf, atomically.

        Raises:
            GltfError: another suffix, or more than 4 GiB.
            WriteError: the file cannot be written.
        """
        check_suffix(path)
        if len(self._data) + MAX_JSON_BYTES > MAX_FILE_BYTES:
            raise GltfError(f"{path} would have {len(self._data):,} bytes; a glTF file has at most 4 GiB.")
        write_bytes(path, self.encode(binary=path.suffix.lower() == ".glb"))

    def encode(self, *, binary: bool = True) -> bytes:
        """The content of a .glb file, or of a .gltf file with its data inside."""
        self._data += b"\0" * (-len(self._data) % 4)
        document = self.document | {
            "accessors": self._accessors, "bufferViews": self._views, "buffers": [{"byteLength": len(self._data)}],
        }  # fmt: skip
        if not binary:
            document["buffers"][0]["uri"] = _DATA_URI + base64.b64encode(self._data).decode()
            return json.dumps(document, indent=1, allow_nan=False).encode()
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        header = struct.pack("<III", _MAGIC, 2, 28 + len(text) + len(self._data))
        chunks = struct.pack("<II", len(text), _JSON_CHUNK) + text
        return header + chunks + struct.pack("<II", len(self._data), _BINARY_CHUNK) + bytes(self._data)


class GltfFile:
    """The content of a glTF file.

    Args:
        path: .glb or .gltf file.

    Attributes:
        path: the file.
        document: the JSON object.

    Raises:
        GltfError: the file is missing, damaged, too large, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_suffix(path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise GltfError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read.")
            content = path.read_bytes()
        except OSError as error:
            raise GltfError(f"{path} cannot be read: {error.strerror}.") from error
        text, self._binary = self._split(content)
        try:
            document = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise GltfError(f"{path} is damaged: its JSON cannot be read ({error}).") from None
        if not isinstance(document, dict) or not str(self._at(document, "asset", "version")).startswith("2."):
            raise GltfError(f"{path} is not a glTF 2.0 file.")
        self.document: dict[str, Any] = document

    def primitives(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Returns (primitive, node) of the meshes of all nodes. Raises GltfError."""
        meshes = self.document.get("meshes", [])
        found = []
        try:
            for node in self.document.get("nodes", []):
                if isinstance(node.get("mesh"), int):
                    found += [(primitive, node) for primitive in meshes[node["mesh"]]["primitives"]]
        except (AttributeError, IndexError, KeyError, TypeError):
            raise GltfError(f"{self.path} is damaged: a node has no mesh that is in the file.") from None
        return found

    def array(self, index: Any, columns: int) -> np.ndarray:
        """Reads an accessor.

        Args:
            index: of the accessor.
            columns: numbers of a row that are expected.

        Returns:
            (N,) for one column, else (N, columns), in the type of the file; float32 of normalized integers.

        Raises:
            GltfError: there is no such accessor, it is of another shape, or lies outside the file.
        """
        accessor = self._at(self.document, "accessors", index)
        if not isinstance(accessor, dict):
            raise GltfError(f"{self.path} is damaged: it has no accessor {index}.")
        dtype, count = _COMPONENTS.get(accessor.get("componentType", 0)), accessor.get("count")
        if _TYPES.get(accessor.get("type", "")) != columns or dtype is None or not isinstance(count, int):
            raise GltfError(f"{self.path}: accessor {index} is a {accessor.get('type')}; {columns} columns expected.")
        if "sparse" in accessor or "bufferView" not in accessor:
            raise GltfError(f"{self.path}: accessor {index} is sparse or compressed, which is not read.")
        view = self._at(self.document, "bufferViews", accessor["bufferView"])
        buffer = self._buffer(view)
        row = columns * np.dtype(dtype).itemsize
        numbers = (accessor.get("byteOffset", 0), view.get("byteOffset", 0), view.get("byteStride", row), count)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise GltfError(f"{self.path} is damaged: accessor {index} has invalid offsets.")
        start, stride = numbers[0] + numbers[1], numbers[2]
        if stride < row or start + max(count - 1, 0) * stride + (row if count else 0) > len(buffer):
            raise GltfError(f"{self.path} is truncated or damaged: accessor {index} lies outside of its data.")
        rows = np.ndarray((count, columns), dtype, buffer, start, (stride, np.dtype(dtype).itemsize))
        values = rows.astype(rows.dtype.newbyteorder("="))
        if accessor.get("normalized") is True and values.dtype.kind in "iu":
            values = np.maximum(values.astype(np.float32) / np.iinfo(values.dtype).max, -1)
        return values[:, 0] if columns == 1 else values

    def _split(self, content: bytes) -> tuple[bytes, bytes]:
        """Returns (JSON, binary chunk)."""
        if self.path.suffix.lower() == ".gltf":
            return content, b""
        if len(content) < 20 or struct.unpack_from("<II", content) != (_MAGIC, 2):
            raise GltfError(f"{self.path} is not a binary glTF 2.0 file.")
        chunks: dict[int, bytes] = {}
        at = 12
        while at + 8 <= len(content):
            size, kind = struct.unpack_from("<II", content, at)
            if at + 8 + size > len(content):
                raise GltfError(f"{self.path} is truncated: it has {len(content):,} bytes.")
            chunks.setdefault(kind, content[at + 8 : at + 8 + size])
            at += 8 + size
        if _JSON_CHUNK not in chunks or len(chunks[_JSON_CHUNK]) > MAX_JSON_BYTES:
            raise GltfError(f"{self.path} is damaged: it has no JSON chunk of at most {MAX_JSON_BYTES:,} bytes.")
        return chunks[_JSON_CHUNK], chunks.get(_BINARY_CHUNK, b"")

    def _buffer(self, view: Any) -> bytes:
        buffer = self._at(self.document, "buffers", view.get("buffer") if isinstance(view, dict) else None)
        if not isinstance(buffer, dict):
            raise GltfError(f"{self.path} is damaged: a view has no buffer.")
        uri = buffer.get("uri")
        if uri is None:
            return self._binary
        if not isinstance(uri, str) or not uri.startswith("data:") or "base64," not in uri[:100]:
            raise GltfError(f"{self.path} keeps its data in other files, which are not read; store it as .glb.")
        try:
            return base64.b64decode(uri.split("base64,", 1)[1], validate=True)
        except binascii.Error:
            raise GltfError(f"{self.path} is damaged: its data is not base64.") from None

    @staticmethod
    def _at(content: Any, *keys: Any) -> Any:
        """The value at these keys; None if there is none."""
        for key in keys:
            if isinstance(content, dict):
                content = content.get(key)
            elif isinstance(content, list) and isinstance(key, int) and 0 <= key < len(content):
                content = content[key]
            else:
                return None
        return content


def check_suffix(path: Path) -> None:
    """Checks that a file is .glb or .gltf. Raises GltfError."""
    if path.suffix.lower() not in SUFFIXES:
        raise GltfError(f"{path} has the suffix '{path.suffix}'; {' or '.join(SUFFIXES)} was expected.")


def node_rotation(up: np.ndarray) -> list[float]:
    """Quaternion x, y, z, w of a node that turns the world so that `up` becomes +y, which is up in glTF."""
    up = np.asarray(up, np.float64)
    up = up / np.linalg.norm(up)
    axis, cosine = np.cross(up, (0.0, 1.0, 0.0)), float(up[1])
    if cosine < -1 + 1e-9:  # upside down: half a turn about x
        return [1.0, 0.0, 0.0, 0.0]
    quaternion = np.array([*axis, 1 + cosine])
    return [float(value) for value in quaternion / math.sqrt(float(quaternion @ quaternion))]


def check_placement(file: GltfFile, node: dict[str, Any]) -> None:
    """Checks that the arrays of a node are in world coordinates.

    They are in files of this package, whose node may turn the world for display only (`extras.world_up`).

    Raises:
        GltfError: the node, or one above it, moves its content.
    """
    nodes = file.document.get("nodes", [])
    children = {child for other in nodes for child in other.get("children", [])}
    is_child = any(other is node and index in children for index, other in enumerate(nodes))
    moved = {"matrix", "rotation", "translation", "scale"} & node.keys()
    if (moved and "world_up" not in (node.get("extras") or {})) or is_child:
        raise GltfError(
            f"{file.path} places its content by a transform ({', '.join(sorted(moved)) or 'of a parent node'}), which "
            "is not read. Apply the transforms before exporting."
        )
