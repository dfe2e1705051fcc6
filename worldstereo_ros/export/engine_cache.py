"""A folder of TensorRT engines, each found by everything that it depends on. Needs no TensorRT.

An engine runs on the kind of GPU and the version of TensorRT that built it, and takes minutes to build: so it is kept,
and never used for anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from worldstereo_ros.export.onnx import ModelExportError

MAGIC = b"WSENGINE"
MAX_HEADER = 1 << 20
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputProfile:
    """The shapes that an engine takes for one input; `best` is what it is tuned for.

    Raises:
        ModelExportError: the three do not bound each other.
    """

    name: str
    least: Shape
    best: Shape
    most: Shape

    def __post_init__(self) -> None:
        ranks = {len(self.least), len(self.best), len(self.most)}
        ordered = len(ranks) == 1 and all(
            0 < a <= b <= c for a, b, c in zip(self.least, self.best, self.most, strict=True)
        )
        if not ordered:
            raise ModelExportError(
                f"The shapes of {self.name} are {self.least}, {self.best}, {self.most}; least <= best <= most of one "
                "rank was expected."
            )

    def holds(self, shape: Shape) -> bool:
        """True for a shape inside."""
        return len(shape) == len(self.least) and all(
            a <= n <= b for a, n, b in zip(self.least, shape, self.most, strict=True)
        )


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        model: hash of the ONNX file's description, in which the hash of the weights is.
        gpu: name of the GPU.
        capability: its compute capability (major, minor).
        tensorrt: version of TensorRT.
        inputs: shapes it was built for.
        precision: `as exported`, `fp16` or `bf16`.
        level: optimisation level of the builder.
    """

    model: str
    gpu: str
    capability: tuple[int, int]
    tensorrt: str
    inputs: tuple[InputProfile, ...]
    precision: str = "as exported"
    level: int = 3

    def to_json(self) -> str:
        """One line, the same for equal keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: the name of the engine's file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class EngineCache:
    """Engines in a folder.

    Args:
        folder: made where it is missing.

    Raises:
        ModelExportError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelExportError(f"The folder {self.folder} for engines cannot be made: {error.strerror}.") from error

    def path(self, key: EngineKey) -> Path:
        """Where the engine of a key is, or would be."""
        return self.folder / f"{key.digest}.engine"

    def load(self, key: EngineKey) -> bytes | None:
        """The engine, or None where there is none that can be trusted; a damaged file is removed."""
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
        """Keeps an engine; other readers see all of it or nothing.

        Raises:
            ModelExportError: it is empty, or the disk refuses.
        """
        if not engine:
            raise ModelExportError("An empty engine was given, so nothing was kept.")
        header = json.dumps({"key": key.to_json(), "size": len(engine), "sha256": hashlib.sha256(engine).hexdigest()})
        path = self.path(key)
        write_atomically(path, MAGIC + len(header).to_bytes(4, "little") + header.encode() + engine)
        return path

    def forget(self, key: EngineKey) -> None:
        """Removes an engine that turned out to be of no use."""
        self.path(key).unlink(missing_ok=True)

    def get(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """The engine, built where there is none; two processes that ask at once build it once.

        Raises:
            ModelExportError: what `build` raises.
        """
        engine = self.load(key)
        if engine is not None:
            return engine
        with self._alone(key):
            engine = self.load(key)  # another process may have built it while this one waited
            if engine is None:
                engine = build()
                self.store(key, engine)
        return engine

    def timing(self, key: EngineKey) -> Path:
        """Timings of TensorRT's builder: good for one GPU and version, whatever the model."""
        name = json.dumps([key.gpu, key.capability, key.tensorrt])
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.timing"

    @contextmanager
    def _alone(self, key: EngineKey) -> Iterator[None]:
        import fcntl

        with (self.folder / f"{key.digest}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, whatever ends the process
            yield


def write_atomically(path: Path, content: bytes) -> None:
    """Writes aside, to the disk, and renames.

    Raises:
        ModelExportError: the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ModelExportError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _unpack(content: bytes, key: EngineKey) -> bytes | None:
    start = len(MAGIC) + 4
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        return None
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    if length > MAX_HEADER or len(content) < start + length:
        return None
    engine = content[start + length :]
    try:
        header = json.loads(content[start : start + length])
        same = header["key"] == key.to_json() and header["size"] == len(engine)
        whole = header["sha256"] == hashlib.sha256(engine).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return engine if same and whole else None
