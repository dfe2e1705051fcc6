"""Recordings (rosbag2: MCAP, SQLite) read and written without ROS, through `rosbags`.

Only message types that are known here are decoded; definitions that a recording brings along are never compiled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Nodetype, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.resources import find_resource


class BagError(WorldStereoError, ValueError):
    """A recording that cannot be used. The message is a sentence: what came, what was expected, what to do."""


class Bag:
    """An open recording.

    Attributes:
        path: a folder with metadata.yaml, or an .mcap or .db3 file.
        topics: name -> message type, of the topics that hold messages.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.topics: dict[str, str] = {}
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._reader: Reader | None = None

    def __enter__(self) -> Bag:
        if not self.path.exists():
            raise BagError(f"There is no recording {self.path}.")
        path = self.path
        if path.is_dir() and not (path / "metadata.yaml").is_file():
            files = sorted([*path.glob("*.mcap"), *path.glob("*.db3")])
            if len(files) != 1:
                raise BagError(f"{path} is no recording: it has no metadata.yaml and {len(files)} .mcap or .db3 files.")
            path = files[0]
        try:
            self._reader = Reader(path)
            self._reader.open()
        except Exception as error:  # a damaged file makes the readers raise anything
            raise BagError(self._damaged(error)) from error
        self.topics = {c.topic: c.msgtype for c in self._reader.connections if c.msgcount}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def require(self, topic: str, types: Iterable[str], what: str) -> str:
        """The type of a topic.

        Raises:
            BagError: there is no such topic (the sentence names those there are), or it has another type.
        """
        types = tuple(types)
        if topic not in self.topics:
            fitting = sorted(name for name, kind in self.topics.items() if kind in types)
            every = ", ".join(f"{name} ({kind})" for name, kind in sorted(self.topics.items())) or "none"
            hint = f" Topics that fit: {', '.join(fitting)}." if fitting else ""
            raise BagError(f"{self.path} has no messages on '{topic}' for the {what}.{hint} Its topics are: {every}.")
        if self.topics[topic] not in types:
            raise BagError(f"'{topic}' holds {self.topics[topic]}; the {what} is one of {', '.join(types)}.")
        return self.topics[topic]

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, memoryview]]:
        """(topic, nanoseconds it was recorded at, serialized message) of these topics, in the order recorded."""
        assert self._reader is not None, "A recording is read within `with Bag(path) as bag`."
        wanted = set(topics)
        connections = [c for c in self._reader.connections if c.topic in wanted]
        if not connections:
            return
        messages = self._reader.messages(connections)
        while True:
            try:
                connection, stamp_ns, raw = next(messages)
            except StopIteration:
                return
            except Exception as error:
                raise BagError(self._damaged(error)) from error
            yield connection.topic, stamp_ns, memoryview(raw)

    def decode(self, topic: str, raw: memoryview) -> Any:
        """The message, with the fields ROS names."""
        try:
            return self._store.deserialize_cdr(raw, self.topics[topic])
        except Exception as error:
            raise BagError(f"A message on '{topic}' in {self.path} is damaged: {error}.") from error

    def _damaged(self, error: Exception) -> str:
        why = str(error).strip().rstrip(".") or type(error).__name__
        return (
            f"The recording {self.path} cannot be read: {why}. If it was cut off (power, disk full), "
            "`mcap recover` or `ros2 bag reindex` may save what is there."
        )


# --- writing ---------------------------------------------------------------------------------------------------------


class BagWriter:
    """Writes a recording, as a folder that `ros2 bag play`, Foxglove and `Bag` open.

    Messages are given serialized (as rclpy or a raw subscription gives them) or as `rosbags` objects. Types of ROS 2
    Jazzy's common interfaces are known; others are found by their .msg file: in this source tree, or in the share
    folders of a sourced ROS environment.
    """

    def __init__(self, path: str | Path, *, storage: str = "mcap") -> None:
        """Makes the folder.

        Args:
            path: of the folder, which must not exist.
            storage: "mcap" or "sqlite3".

        Raises:
            BagError: it exists already, or cannot be made.
        """
        self.path = Path(path)
        plugins = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
        if storage not in plugins:
            raise BagError(f"The storage '{storage}' is not known; {' or '.join(plugins)} was expected.")
        if self.path.exists():
            raise BagError(f"{self.path} exists already; a recording is not written over. Move it, or name another.")
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Any] = {}
        self._writer: Writer | None = Writer(self.path, version=9, storage_plugin=plugins[storage])
        try:
            self._writer.open()
        except OSError as error:
            raise BagError(f"The recording {self.path} cannot be made: {error.strerror}.") from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_topic(self, topic: str, type_name: str, *, latched: bool = False) -> None:
        """Declares a topic; a second time, or later in the recording, does no harm.

        Args:
            topic: with its namespace.
            type_name: such as "sensor_msgs/msg/Image".
            latched: publishers keep the last message for late joiners (transient local), as maps do.

        Raises:
            BagError: the type is not known, or the topic is recorded with another one.
        """
        if topic in self._connections:
            if self._connections[topic].msgtype != type_name:
                raise BagError(f"'{topic}' is recorded as {self._connections[topic].msgtype}, not {type_name}.")
            return
        register_type(self._store, type_name)
        forever = QosTime(9223372036, 854775807)
        qos = Qos(
            QosHistory.KEEP_LAST,
            1 if latched else 10,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            forever,
            forever,
            QosLiveliness.AUTOMATIC,
            forever,
            avoid_ros_namespace_conventions=False,
        )
        self._connections[topic] = self._open_writer().add_connection(
            topic, type_name, typestore=self._store, offered_qos_profiles=[qos]
        )

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Writes one message of a declared topic.

        Args:
            topic: see `add_topic`.
            message: serialized (CDR bytes), or a `rosbags` object of the topic's type.
            stamp_ns: when it was received, nanoseconds.

        Raises:
            BagError: the topic was not declared, or the disk is full.
        """
        if topic not in self._connections:
            raise BagError(f"'{topic}' was not declared (`add_topic`) before its first message.")
        connection = self._connections[topic]
        if not isinstance(message, bytes | bytearray | memoryview):
            message = self._store.serialize_cdr(message, connection.msgtype)
        try:
            self._open_writer().write(connection, max(int(stamp_ns), 0), message)
        except OSError as error:
            raise BagError(f"The recording {self.path} cannot be written: {error.strerror}.") from error

    def message(self, type_name: str, **fields: Any) -> Any:
        """A `rosbags` object of a type, for callers without ROS."""
        register_type(self._store, type_name)
        return self._store.types[type_name](**fields)

    def close(self) -> None:
        """Writes the index; until then the recording has none. Closing twice does no harm."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                raise BagError(f"The recording {self.path} cannot be finished: {error.strerror}.") from error

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise BagError(f"The recording {self.path} is closed.")
        return self._writer


def register_type(store: Typestore, type_name: str) -> None:
    """Makes a message type known to a store, with the types it is made of, from their .msg files.

    Raises:
        BagError: there is no such file.
    """
    if type_name in store.fielddefs:
        return
    parts = type_name.split("/")
    if len(parts) != 3 or parts[1] != "msg" or not all(part.isidentifier() for part in parts):
        raise BagError(f"'{type_name}' is no message type; 'package/msg/Name' was expected.")
    found = get_types_from_msg(_definition(parts[0], parts[2]), type_name)
    for other in sorted(set(_named_types(found[type_name][1])) - {type_name}):
        register_type(store, other)
    store.register(found)


def _named_types(fields: Any) -> Iterator[str]:
    """The message types in the fields of a definition."""
    for _, (kind, inner) in fields:
        if kind == Nodetype.NAME:
            yield inner
        elif kind in (Nodetype.ARRAY, Nodetype.SEQUENCE) and inner[0][0] == Nodetype.NAME:
            yield inner[0][1]


def _definition(package: str, name: str) -> str:
    if package == "worldstereo_ros":
        own = find_resource(f"msg/{name}.msg")
        places = [] if own is None else [own.parent]
    else:
        prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        places = [Path(prefix) / "share" / package / "msg" for prefix in prefixes if prefix]
    for place in places:
        if (place / f"{name}.msg").is_file():
            return (place / f"{name}.msg").read_text(encoding="utf-8")
    raise BagError(
        f"The definition of {package}/msg/{name} was not found; source the ROS environment that has {package}."
    )
