"""Stored probability maps: exact round trips, and no damage unnoticed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskloom.encodings.probability_maps import pack, read_map, unpack, write_map
from maskloom.errors import BadFile, UserError

VALUES = np.random.default_rng(0).integers(0, 256, (2, 5, 7)).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda shape: arrays(np.uint8, shape)))
def test_round_trip(values: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(values)), values)
    assert pack(values) == pack(np.asfortranarray(values))


def test_every_damaged_byte_and_every_cut_is_noticed() -> None:
    data = pack(VALUES)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(UserError):
            unpack(bytes(damaged))
        with pytest.raises(UserError):
            unpack(data[:position])


def forged(shape: tuple[int, int, int], payload: bytes) -> bytes:
    content = struct.pack("<III", *shape) + payload
    return pack(VALUES)[:8] + struct.pack("<I", zlib.crc32(content)) + content


def test_size_is_checked_before_decompression() -> None:
    with pytest.raises(UserError, match="at most"):
        unpack(forged((2**31, 2**31, 1), b"never looked at"))
    with pytest.raises(UserError, match="at most"):
        unpack(pack(VALUES), max_bytes=VALUES.size - 1)
    with pytest.raises(UserError, match="does not fill"):
        unpack(forged((1, 1, 1), zstandard.compress(bytes(10**6))))
    with pytest.raises(UserError, match="damaged"):
        unpack(forged((1, 1, 1), b"no frame"))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pmap"
    write_map(path, VALUES)
    assert np.array_equal(read_map(path), VALUES)
    path.write_bytes(b"something else")
    with pytest.raises(BadFile, match="expected a probability map"):
        read_map(path)
    with pytest.raises(BadFile, match="no such file"):
        read_map(tmp_path / "absent.pmap")


def test_wrong_arrays_are_refused() -> None:
    for values in (VALUES[0], VALUES.astype(np.float32), VALUES[:0]):
        with pytest.raises(ValueError, match="uint8"):
            pack(values)
