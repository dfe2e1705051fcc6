"""Finds frames that are missing between two messages of an H.264 video (ITU-T H.264, sections 7.3 and 7.4.3).

Decoders conceal a frame that was lost on the way to the recording, so that the following ones are wrong without a word.
Each slice carries `frame_num`, which counts the frames that others refer to; a gap in it tells of the loss.
"""

from __future__ import annotations

import re

_SLICE, _KEY_SLICE, _PARAMETERS = 1, 5, 7  # types of network abstraction layer units
# Profiles whose sequence parameters describe chroma, bit depths and scaling.
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_SLICE_HEAD_BYTES = 48  # enough for the fields before and with frame_num


class FrameCounter:
    """Follows `frame_num` from access unit to access unit."""

    def __init__(self) -> None:
        self._bits: int | None = None  # of frame_num, by the sequence parameters
        self._previous: int | None = None  # frame_num of the last frame that others refer to

    def frame_is_missing(self, unit: bytes) -> bool:
        """Whether a frame is missing between the unit before (Annex B) and this one; units are passed in order.

        A unit that cannot be read counts as complete: the decoder rejects it.
        """
        try:
            return self._follow(unit)
        except IndexError:
            return False

    def _follow(self, unit: bytes) -> bool:
        for found in re.finditer(b"\x00\x00\x01", unit):
            start = found.end()
            if start >= len(unit):
                break
            kind, is_reference = unit[start] & 0x1F, bool(unit[start] & 0x60)
            if kind == _PARAMETERS:
                self._bits = _frame_num_bits(_Bits(unit[start + 1 :].split(b"\x00\x00\x01")[0]))
            elif kind in (_SLICE, _KEY_SLICE) and self._bits is not None:
                bits = _Bits(unit[start + 1 : start + 1 + _SLICE_HEAD_BYTES])
                for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
                    bits.exp_golomb()
                number, count = bits.read(self._bits), 1 << self._bits
                previous = self._previous
                if is_reference:
                    self._previous = number
                if kind == _KEY_SLICE or previous is None:
                    return False
                return number not in (previous, (previous + 1) % count)
        return False


class _Bits:
    """Reads bits of a unit, without its emulation prevention bytes. Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data.replace(b"\x00\x00\x03", b"\x00\x00"), 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | (self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1)
            self._at += 1
        return value

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_exp_golomb(self) -> int:
        value = self.exp_golomb()
        return (value + 1) // 2 if value & 1 else -(value // 2)


def _frame_num_bits(bits: _Bits) -> int:
    """Number of bits of frame_num, from a sequence parameter set."""
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.exp_golomb()  # seq_parameter_set_id
    if profile in _HIGH_PROFILES:
        chroma_format = bits.exp_golomb()
        if chroma_format == 3:
            bits.read(1)  # separate_colour_plane_flag
        bits.exp_golomb()  # bit_depth_luma_minus8
        bits.exp_golomb()  # bit_depth_chroma_minus8
        bits.read(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.read(1):  # seq_scaling_matrix_present_flag
            for index in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    return bits.exp_golomb() + 4  # log2_max_frame_num_minus4


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_exp_golomb()) % 256
        last = following or last
