"""Strategies that damage files: bytes anywhere, or single values of JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# Lengths and counts that readers multiply, as they stand in binary files.
_INTEGERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF]
_NUMBERS = [0, 1, -1, 2, 3, 7, 255, 65_535, 10**6, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308]
_TEXTS = ["", "x", "nan", "owner/name", "../../etc", "/dev/zero", "\x00", "é" * 40, "x" * 5000, "1e9", "[1]"]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to four changes: bytes flipped, overwritten, cut, doubled, inserted; or something else."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "integer", "text", "cut", "remove", "double", "insert", "zero"]))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "integer":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(_INTEGERS)) & (256**size - 1)
            data[at : at + size] = value.to_bytes(size, draw(st.sampled_from(["little", "big"])))
        elif kind == "text":
            text = draw(st.sampled_from([*map(str, _NUMBERS), "nan", "-inf", *_TEXTS[:6]])).encode()
            data[at : at + len(text)] = text
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            data[at : at + length] = bytes(min(length, max(0, len(data) - at)))
    return bytes(data)


def values() -> st.SearchStrategy[Any]:
    """Values of JSON that a configuration does not expect."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(_NUMBERS),
        st.sampled_from([float("nan"), float("inf")]),
        st.sampled_from(_TEXTS),
        st.integers(-(2**70), 2**70),
        st.floats(),
    )
    return st.one_of(
        scalars,
        st.lists(scalars, max_size=6),
        st.dictionaries(st.sampled_from(["a", "dim", "_class_name"]), scalars, max_size=3),
        st.just([1] * 3000),
    )


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> Any:
    """The content with one to three values at any depth replaced or removed, or another value as a whole."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places or draw(st.integers(0, 30)) == 0:
            return draw(values())
        owner, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 4)) == 0:
            del owner[key]
        else:
            owner[key] = draw(values())
    return content


def _places(content: Any) -> Any:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)
