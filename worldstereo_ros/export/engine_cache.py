"""A folder of TensorRT engines, found by everything that they depend on; does not need TensorRT.

An engine runs only on the type of GPU and with the version of TensorRT that it was built for, and takes minutes to
build. The cache keeps engines and never returns one for another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from worldstereo_ros.export.errors import ModelExportError
from worldstereo_ros.utils.atomic_files import WriteError, write_bytes

MAGIC = b"WSENGINE"
MAX_HEADER_BYTES = 1 << 20
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputProfile:
    """The shapes of one input in TensorRT's optimization profile.

    Attributes:
        name: name of the input.
        min: smallest shape.
        opt: shape that the engine is optimised for.
        max: largest shape.

    Raises:
        ModelExportError: not min <= opt <= max.
    """

    name: str
    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        ranks = {len(self.min), len(self.opt), len(self.max)}
        ordered = len(ranks) == 1 and all(
            0 < low <= n <= high for low, n, high in zip(self.min, self.opt, self.max, strict=True)
        )
        if not ordered:
            raise ModelExportError(
                f"The shapes of {self.name} are {self.min}, {self.opt}, {self.max}; min <= opt <= max with the same "
                "rank was expected."
            )

    def contains(self, shape: Shape) -> bool:
        """Whether a shape is between `min` and `max`."""
        return len(shape) == len(self.min) and all(
            low <= n <= high for low, n, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        model: hash of the ONNX file's metadata, which contain the hash of the weights.
        gpu: name of the GPU.
        capability: compute capability (major, minor) of the GPU.
        tensorrt: version of TensorRT.
        inputs: shapes that the engine is built for.
        precision: `as exported`, `fp16` or `bf16`.
        optimization_level: `builder_optimization_level` of the builder.
    """

    model: str
    gpu: str
    capability: tuple[int, int]
    tensorrt: str
    inputs: tuple[InputProfile, ...]
    precision: str = "as exported"
    optimization_level: int = 3

    def to_json(self) -> str:
        """Returns the key as one line of JSON; equal keys give equal lines."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the key, the name of the engine's file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class EngineCache:
    """A folder of engines.

    Args:
        folder: the folder; created if missing.

    Raises:
        ModelExportError: the folder cannot be created.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelExportError(
                f"The folder {self.folder} for engines cannot be created: {error.strerror}."
            ) from error

    def path(self, key: EngineKey) -> Path:
        """Returns the path of a key's engine, whether it exists or not."""
        return self.folder / f"{key.digest}.engine"

    def load(self, key: EngineKey) -> bytes | None:
        """Loads an engine; returns None if it is missing or damaged. A damaged file is removed."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        engine = _unpack(content, key)
        if engine is None:
            path.unlink(missing_ok=True)
        return engine

    def store(self, key: EngineKey, engine: bytes) -> Path:
        """Stores an engine atomically.

        Args:
            key: its key.
            engine: the serialized engine.

        Returns:
            The path of the file.

        Raises:
            ModelExportError: the engine is empty, or the file cannot be written.
        """
        if not engine:
            raise ModelExportError("The engine is empty and was not stored.")
        header = json.dumps({"key": key.to_json(), "size": len(engine), "sha256": hashlib.sha256(engine).hexdigest()})
        path = self.path(key)
        write_atomically(path, MAGIC + len(header).to_bytes(4, "little") + header.encode() + engine)
        return path

    def remove(self, key: EngineKey) -> None:
        """Removes an engine, if it is there."""
        self.path(key).unlink(missing_ok=True)

    def get_or_build(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """Loads an engine, or builds and stores it; concurrent processes build it once.

        Args:
            key: key of the engine.
            build: builds the serialized engine.

        Raises:
            ModelExportError: the engine cannot be built or stored.
        """
        engine = self.load(key)
        if engine is not None:
            return engine
        with self._lock(key):
            engine = self.load(key)  # another process may have built it while this one waited
            if engine is None:
                engine = build()
                self.store(key, engine)
        return engine

    def timing_cache_path(self, key: EngineKey) -> Path:
        """Returns the path of the builder's timing cache, which depends on GPU and version of TensorRT only."""
        name = json.dumps([key.gpu, key.capability, key.tensorrt])
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.timing"

    @contextmanager
    def _lock(self, key: EngineKey) -> Iterator[None]:
        import fcntl

        with (self.folder / f"{key.digest}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even if the process is killed
            yield


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, flushes it to the disk and renames it.

    Args:
        path: the file.
        content: its content.

    Raises:
        ModelExportError: the file cannot be written.
    """
    try:
        write_bytes(path, content)
    except WriteError as error:
        raise ModelExportError(str(error)) from error


def _unpack(content: bytes, key: EngineKey) -> bytes | None:
    """Returns the engine of a file's content, or None if the content is damaged or of another key."""
    start = len(MAGIC) + 4
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        return None
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    if length > MAX_HEADER_BYTES or len(content) < start + length:
        return None
    engine = content[start + length :]
    try:
        header = json.loads(content[start : start + length])
        same_key = header["key"] == key.to_json() and header["size"] == len(engine)
        intact = header["sha256"] == hashlib.sha256(engine).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return engine if same_key and intact else None
