"""Bodies of requests and answers: a safetensors container with one JSON object and arrays.

The object is the array `fields` (bytes of JSON). Images are PNG or JPEG files in arrays of bytes. Numbers for each
pixel are compressed without loss: their bytes are sorted by significance, which makes most of them alike, and go
through zlib. Sizes are checked before memory is taken for them; nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from worldstereo_ros.utils.errors import InputError

FIELDS = "fields"
MAX_FIELDS_BYTES = 1_000_000
MAX_HEADER_BYTES = 1_000_000
MAX_ARRAYS = 4096
_ZLIB_LEVEL = 1


def pack(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Joins fields, which are JSON, and arrays of numbers to one message."""
    from safetensors.numpy import save

    text = json.dumps(fields, separators=(",", ":")).encode()
    return save(
        {FIELDS: np.frombuffer(text, np.uint8), **{k: np.ascontiguousarray(v) for k, v in (arrays or {}).items()}}
    )


def unpack(body: bytes, what: str = "The request") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Splits a message into its fields and its arrays.

    Raises:
        InputError: it is no such message; arrays take at most as much memory as the body.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    expected = "a safetensors container with JSON in the array `fields` was expected"
    if len(body) < 8 or struct.unpack_from("<Q", body)[0] > min(MAX_HEADER_BYTES, len(body) - 8):
        raise InputError(f"{what} is no message ({len(body)} bytes); {expected}.")
    try:
        arrays = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{what} is damaged ({str(error)[:200]}); {expected}.") from None
    if len(arrays) > MAX_ARRAYS:
        raise InputError(f"{what} has {len(arrays)} arrays; at most {MAX_ARRAYS} were expected.")
    text = arrays.pop(FIELDS, None)
    if text is None or text.dtype != np.uint8 or text.size > MAX_FIELDS_BYTES:
        raise InputError(f"{what} has no array `fields` of JSON; {expected}.")
    try:
        fields = json.loads(text.tobytes())
    except (ValueError, RecursionError):
        raise InputError(f"{what} has fields that are no JSON; {expected}.") from None
    if not isinstance(fields, dict):
        raise InputError(f"{what} has fields that are no JSON object; {expected}.")
    # Compiled loops take arrays that can be written, which those of the container are not.
    return fields, {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}


def compress(array: np.ndarray) -> np.ndarray:
    """Compresses the numbers of an image to an array of bytes; bools become bits."""
    raw: np.ndarray
    if array.dtype == np.bool_:
        raw = np.packbits(array)
    else:
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize).T
    return np.frombuffer(zlib.compress(np.ascontiguousarray(raw).tobytes(), _ZLIB_LEVEL), np.uint8)


def decompress(data: np.ndarray, dtype: type, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The inverse of `compress`; takes no more memory than the shape needs.

    Raises:
        InputError: it is no such data, or has more or fewer numbers than the shape.
    """
    if data.dtype != np.uint8 or data.ndim != 1:
        raise InputError(f"{what} is {data.dtype} of shape {data.shape}; a row of bytes was expected.")
    count = int(np.prod(shape))
    size = np.dtype(dtype).itemsize
    expected = -(-count // 8) if dtype is np.bool_ else count * size
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data.tobytes(), expected + 1)
    except zlib.error as error:
        raise InputError(f"{what} is damaged: {error}.") from None
    if len(raw) != expected or not inflater.eof:
        raise InputError(f"{what} has another size than its image, {shape}; {expected} bytes were expected.")
    levels = np.frombuffer(raw, np.uint8)
    if dtype is np.bool_:
        return np.unpackbits(levels, count=count).astype(np.bool_).reshape(shape)
    return np.array(levels.reshape(size, count).T, order="C").view(dtype).reshape(shape)


# --- fields ---


def check_known(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Checks that all fields have a meaning: one of a wrong name would silently be left out. Raises InputError."""
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise InputError(f"The field {unknown[0][:60]!r} is unknown; {', '.join(known)} were expected.")


def number(fields: Mapping[str, Any], name: str, default: float | None, low: float, high: float) -> float:
    """A number among the fields; `default` None = it must be there. Raises InputError."""
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"The field {name} is {str(value)[:60]!r}; a number from {low:g} to {high:g} was expected.")
    return float(value)


def whole(fields: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int:
    """A whole number among the fields. Raises InputError."""
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"The field {name} is {str(value)[:60]!r}; a whole number from {low} to {high} was expected.")
    return value


def text(fields: Mapping[str, Any], name: str, default: str = "", most: int = 4000) -> str:
    """A text among the fields. Raises InputError."""
    value = fields.get(name, default)
    if not isinstance(value, str) or len(value) > most:
        raise InputError(f"The field {name} is no text of at most {most} characters.")
    return value


def truth(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """A bool among the fields. Raises InputError."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"The field {name} is {str(value)[:60]!r}; true or false was expected.")
    return value


def array_of(arrays: Mapping[str, np.ndarray], name: str, dtype: type, ndim: int) -> np.ndarray:
    """An array of a message. Raises InputError."""
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.ndim != ndim:
        came = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise InputError(f"The array {name} is {came}; {np.dtype(dtype)} with {ndim} dimensions was expected.")
    return array
