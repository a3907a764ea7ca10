"""Probability maps as small files: uint8 C×H×W, zstd level 1 behind a checked header.

The header holds a magic word, the shape and a checksum of all that follows, so that damage is found and the size is
known before anything is decompressed. Knows nothing about tasks or what the maps are of.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import zstandard

from maskloom.errors import BadFile, UserError
from maskloom.files import write_bytes
from maskloom.storage.placeholders import at_hand

MAX_BYTES = 2**32
"""The largest map (values, one byte each) that is read unless asked otherwise."""

_MAGIC = b"MLPMAP1\n"
_SHAPE = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = len(_MAGIC) + _CHECKSUM.size + _SHAPE.size


def pack(values: np.ndarray) -> bytes:
    """Returns the bytes of uint8 probabilities C×H×W; equal values give equal bytes."""
    if values.ndim != 3 or values.dtype != np.uint8 or not values.size:
        raise ValueError(f"expected uint8 C×H×W, got {values.dtype} {values.shape}")
    content = _SHAPE.pack(*values.shape) + zstandard.ZstdCompressor(level=1).compress(np.ascontiguousarray(values).data)
    return _MAGIC + _CHECKSUM.pack(zlib.crc32(content)) + content


def unpack(data: bytes, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Returns the uint8 array C×H×W (read-only) that ``pack`` was given.

    Raises ``UserError`` when the bytes are damaged, cut off or something else, or when the header promises more
    than ``max_bytes`` values; nothing is decompressed before these checks.
    """
    if len(data) <= _HEADER_BYTES or not data.startswith(_MAGIC):
        raise UserError("expected a probability map, found something else; let the stage that writes it run again")
    (stored,) = _CHECKSUM.unpack_from(data, len(_MAGIC))
    content = memoryview(data)[len(_MAGIC) + _CHECKSUM.size :]
    if zlib.crc32(content) != stored:
        raise UserError("the probability map is damaged (its checksum differs); delete it and start the run again")
    shape = _SHAPE.unpack_from(content)
    num_values = shape[0] * shape[1] * shape[2]
    if num_values > max_bytes:
        raise UserError(f"expected a probability map of at most {max_bytes} values, found one of {num_values} {shape}")
    packed = content[_SHAPE.size :]
    try:
        if zstandard.frame_content_size(packed) != num_values:
            raise UserError(f"the probability map is damaged: its content does not fill its shape {shape}")
        values = zstandard.ZstdDecompressor().decompress(packed, max_output_size=num_values)
    except zstandard.ZstdError as error:
        raise UserError(f"the probability map is damaged ({error}); delete it and start the run again") from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def write_map(path: Path, values: np.ndarray) -> None:
    """Writes uint8 probabilities C×H×W to ``path``, atomically."""
    write_bytes(path, pack(values))


def read_map(path: Path, *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Returns the uint8 probabilities C×H×W stored at ``path`` (read-only); raises ``BadFile`` naming the path."""
    try:
        return unpack(at_hand(path).read_bytes(), max_bytes=max_bytes)
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    except BadFile:
        raise
    except UserError as error:
        raise BadFile(path, str(error)) from None
