"""Reads and writes bags (rosbag2: MCAP, SQLite) without ROS, through `rosbags`.

Only known message types are decoded; message definitions stored in a bag are never compiled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import (
    Connection,
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from worldstereo_ros.io.bags.compression import UnpackError, unpack_zstd
from worldstereo_ros.io.bags.errors import BagError
from worldstereo_ros.io.bags.open_bag import open_readers, unreadable_message
from worldstereo_ros.io.bags.video_types import DECODED_TYPES, video_advice
from worldstereo_ros.utils.resources import find_resource


class Bag:
    """Context manager that opens a bag for reading.

    Attributes:
        path: a folder with metadata.yaml, an .mcap or .db3 file, or a folder with the files of a split recording.
        topics: name -> message type, of the topics with messages.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.topics: dict[str, str] = {}
        self._store = get_typestore(Stores.ROS2_JAZZY)
        for type_name, definition in DECODED_TYPES.items():
            self._store.register(get_types_from_msg(definition, type_name))
        self._readers: list[Reader] = []
        self._packed: list[Reader] = []  # whose messages are compressed one by one
        self._foreign: dict[str, str] = {}  # topic -> encoding that is not ROS 2's
        self._stack = ExitStack()

    def __enter__(self) -> Bag:
        with ExitStack() as stack:
            self._readers = open_readers(self.path, stack)
            self._stack = stack.pop_all()
        self._packed = [reader for reader in self._readers if reader.compression_mode == "message"]
        for reader in self._packed:  # unpacked by `_messages_of`: `rosbags` would unpack a message of any size
            reader.storage.metadata = reader.storage.metadata._replace(compression_mode=None)
        connections = [c for reader in self._readers for c in reader.connections if c.msgcount]
        self._foreign = {c.topic: e for c in connections if (e := _encoding(c)) != "cdr"}
        self.topics = {c.topic: c.msgtype for c in connections if c.topic not in self._foreign}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers = []
        self._stack.close()

    def require(self, topic: str, types: Iterable[str], what: str) -> str:
        """Checks that a topic exists with one of the types, and returns its type.

        Args:
            topic: name of the topic.
            types: accepted message types.
            what: what the topic is needed for, for error messages.

        Raises:
            BagError: the topic does not exist (the message lists the topics), or it has another type.
        """
        types = tuple(types)
        if topic in self._foreign:
            raise BagError(
                f"The messages on '{topic}' in {self.path} are encoded as {self._foreign[topic]}, not as CDR, the "
                f"encoding of ROS 2, so they cannot be read for the {what}."
            )
        if topic not in self.topics:
            matching = sorted(name for name, kind in self.topics.items() if kind in types)
            every = ", ".join(f"{name} ({kind})" for name, kind in sorted(self.topics.items())) or "none"
            hint = f" Matching topics: {', '.join(matching)}." if matching else ""
            raise BagError(f"{self.path} has no messages on '{topic}' for the {what}.{hint} Its topics are: {every}.")
        if self.topics[topic] not in types:
            advice = video_advice(self.topics[topic])
            expected = f"{' or '.join(types)} was expected for the {what}."
            raise BagError(f"'{topic}' has type {self.topics[topic]}; {expected} {advice}".rstrip())
        return self.topics[topic]

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, memoryview]]:
        """Yields (topic, receive time in nanoseconds, serialized message) of these topics in recorded order.

        Raises:
            BagError: the bag is damaged.
        """
        assert self._readers, "Open the bag first: `with Bag(path) as bag`."
        selected = set(topics)
        for reader in self._readers:
            # The files of a split recording may give one name to topics of two types.
            connections = [
                c for c in reader.connections if c.topic in selected and c.msgtype == self.topics.get(c.topic)
            ]
            if connections:
                yield from self._messages_of(reader, connections)

    def _messages_of(self, reader: Reader, connections: list[Connection]) -> Iterator[tuple[str, int, memoryview]]:
        packed = reader in self._packed
        messages = reader.messages(connections)
        while True:
            try:
                connection, stamp_ns, raw = next(messages)
                if packed:
                    raw = unpack_zstd(memoryview(raw), f"A message on '{connection.topic}'")
            except StopIteration:
                return
            except UnpackError as error:
                raise BagError(f"The bag {self.path} is not read. {error}") from error
            except Exception as error:
                raise BagError(unreadable_message(self.path, error)) from error
            yield connection.topic, stamp_ns, memoryview(raw)

    def decode(self, topic: str, raw: memoryview) -> Any:
        """Deserializes a message; its fields are named as in ROS. Raises BagError."""
        try:
            return self._store.deserialize_cdr(raw, self.topics[topic])
        except Exception as error:
            raise BagError(f"A message on '{topic}' in {self.path} is damaged: {error}.") from error


def _encoding(connection: Connection) -> str:
    """Serialization of the messages of a topic: "cdr" in ROS 2."""
    return getattr(connection.ext, "serialization_format", "cdr") or "cdr"


# --- writing ---------------------------------------------------------------------------------------------------------


class BagWriter:
    """Writes a bag folder that `ros2 bag play`, Foxglove and `Bag` open.

    Messages are passed serialized (as from rclpy or a raw subscription) or as `rosbags` objects. The common interfaces
    of ROS 2 Jazzy are built in; other types are read from their .msg file in this source tree or in the share folders
    of a sourced ROS environment.
    """

    def __init__(self, path: str | Path, *, storage: str = "mcap") -> None:
        """Creates the folder.

        Args:
            path: folder of the bag; it must not exist.
            storage: "mcap" or "sqlite3".

        Raises:
            BagError: the folder exists or cannot be created.
        """
        self.path = Path(path)
        plugins = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
        if storage not in plugins:
            raise BagError(f"The storage '{storage}' is unknown; {' or '.join(plugins)} was expected.")
        if self.path.exists():
            raise BagError(f"{self.path} already exists; bags are not overwritten. Move it, or choose another path.")
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Any] = {}
        self._writer: Writer | None = Writer(self.path, version=9, storage_plugin=plugins[storage])
        try:
            self._writer.open()
        except OSError as error:
            raise BagError(f"The bag {self.path} cannot be created: {error.strerror}.") from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_topic(self, topic: str, type_name: str, *, latched: bool = False) -> None:
        """Declares a topic, at any time before its first message; repeated calls are ignored.

        Args:
            topic: full topic name.
            type_name: message type such as "sensor_msgs/msg/Image".
            latched: transient local durability: late subscribers receive the last message.

        Raises:
            BagError: the type is unknown, or the topic was declared with another type.
        """
        if topic in self._connections:
            if self._connections[topic].msgtype != type_name:
                raise BagError(f"'{topic}' was declared as {self._connections[topic].msgtype}, not {type_name}.")
            return
        register_type(self._store, type_name)
        unlimited = QosTime(9223372036, 854775807)
        qos = Qos(
            QosHistory.KEEP_LAST,
            1 if latched else 10,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            unlimited,
            unlimited,
            QosLiveliness.AUTOMATIC,
            unlimited,
            avoid_ros_namespace_conventions=False,
        )
        self._connections[topic] = self._open_writer().add_connection(
            topic, type_name, typestore=self._store, offered_qos_profiles=[qos]
        )

    def write(self, topic: str, message: Any, stamp_ns: int) -> None:
        """Writes one message of a declared topic.

        Args:
            topic: declared topic, see `add_topic`.
            message: serialized (CDR bytes), or a `rosbags` object of the topic's type.
            stamp_ns: receive time in nanoseconds.

        Raises:
            BagError: the topic was not declared, or a write error occurred.
        """
        if topic not in self._connections:
            raise BagError(f"'{topic}' was not declared (`add_topic`) before its first message.")
        connection = self._connections[topic]
        if not isinstance(message, bytes | bytearray | memoryview):
            message = self._store.serialize_cdr(message, connection.msgtype)
        try:
            self._open_writer().write(connection, max(int(stamp_ns), 0), message)
        except OSError as error:
            raise BagError(f"The bag {self.path} cannot be written: {error.strerror}.") from error

    def message(self, type_name: str, **fields: Any) -> Any:
        """Creates a `rosbags` message object, for callers without ROS. Raises BagError."""
        register_type(self._store, type_name)
        return self._store.types[type_name](**fields)

    def close(self) -> None:
        """Writes the index and closes the bag. Repeated calls are ignored. Raises BagError."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                raise BagError(f"The bag {self.path} cannot be finished: {error.strerror}.") from error

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise BagError(f"The bag {self.path} is closed.")
        return self._writer


def register_type(store: Typestore, type_name: str) -> None:
    """Registers a message type and the types of its fields with a store, from their .msg files.

    Raises:
        BagError: a .msg file was not found, or the type name is invalid.
    """
    if type_name in store.fielddefs:
        return
    parts = type_name.split("/")
    if len(parts) != 3 or parts[1] != "msg" or not all(part.isidentifier() for part in parts):
        raise BagError(f"'{type_name}' is not a message type; 'package/msg/Name' was expected.")
    found = get_types_from_msg(_definition(parts[0], parts[2]), type_name)
    for field_type in sorted(set(_named_types(found[type_name][1])) - {type_name}):
        register_type(store, field_type)
    store.register(found)


def _named_types(fields: Any) -> Iterator[str]:
    """Yields the message types of the fields of a definition."""
    for _, (kind, inner) in fields:
        if kind == Nodetype.NAME:
            yield inner
        elif kind in (Nodetype.ARRAY, Nodetype.SEQUENCE) and inner[0][0] == Nodetype.NAME:
            yield inner[0][1]


def _definition(package: str, name: str) -> str:
    """Returns the definition of a type, from its .msg file."""
    if (known := DECODED_TYPES.get(f"{package}/msg/{name}")) is not None:
        return known
    if package == "worldstereo_ros":
        bundled = find_resource(f"msg/{name}.msg")
        folders = [] if bundled is None else [bundled.parent]
    else:
        prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        folders = [Path(prefix) / "share" / package / "msg" for prefix in prefixes if prefix]
    for folder in folders:
        if (folder / f"{name}.msg").is_file():
            return (folder / f"{name}.msg").read_text(encoding="utf-8")
    raise BagError(f"The definition of {package}/msg/{name} was not found; source a ROS environment with {package}.")
