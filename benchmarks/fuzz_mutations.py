"""How inputs are spoilt: bytes, text, JSON values and the parts of image files that readers trust.

Every function takes the generator first and returns something new; nothing here knows what reads it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

from numpy.random import Generator

NUMBERS = (0, 1, 2, 255, 4_095, 65_535, 65_536, 100_000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
"""What counts, offsets and sides are replaced by."""
WORDS = (
    "", " ", "0", "-1", "1", "1.5", "1e309", "-1e309", "NaN", "nan", "Infinity", "0x10", "1_000", "٣", "½", "9" * 30,
    "9" * 5000, "true", "null", "../../outside", "/etc/passwd", "a/../../b", "..", ".", "C:\\x", "a\\b", "\x00",
    "a\x00b", "\n", "\r", "\u2028", "\u202eabc", "\ufeff", "é", "e\u0301", "😀", "\ud83d", '"', "'",
    "<script>alert(1)</script>", "=1+1",
    "%s%n", "{0}", "$HOME", "con", "a" * 300, "a" * 100_000, "-" * 50, "2024-99-99", "12:99:99", "&", "*", "!!x",
)  # fmt: skip
"""What cells, keys and texts are replaced by."""
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1.5, 1e308, 10**25, 10**400, 2**31, 2**63, float("nan"), float("inf"), [], {}, [[]], [None],
    [-1, -1], [100_000, 100_000], [65_535, 65_535], [1e9, 1e9], {"size": [1, 1]}, *WORDS,
)  # fmt: skip
MOST_LETTERS = 400_000_000
"""That a text grows to, which is more than readers take."""

Bytes = bytes


def pick(rng: Generator, options: Any) -> Any:
    """Returns one of a sequence, as it is."""
    return options[int(rng.integers(len(options)))]


# Bytes ---------------------------------------------------------------------------------------------------------------


def _flip(rng: Generator, data: bytearray) -> bytearray:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def _randomise(rng: Generator, data: bytearray) -> bytearray:
    start = int(rng.integers(len(data)))
    for place in range(start, min(start + int(rng.integers(1, 17)), len(data))):
        data[place] = int(rng.integers(256))
    return data


def _cut(rng: Generator, data: bytearray) -> bytearray:
    return data[: int(rng.integers(len(data)))]


def _leave_out(rng: Generator, data: bytearray) -> bytearray:
    start = int(rng.integers(len(data)))
    return data[:start] + data[start + int(rng.integers(1, 65)) :]


def _repeat(rng: Generator, data: bytearray) -> bytearray:
    start = int(rng.integers(len(data)))
    part = data[start : start + int(rng.integers(1, 65))]
    return data[:start] + part * int(rng.integers(2, 50)) + data[start:]


def _zeros(rng: Generator, data: bytearray) -> bytearray:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 257))
    data[start : start + length] = bytes(min(length, len(data) - start))
    return data


def _number(rng: Generator, data: bytearray) -> bytearray:
    """Replaces an aligned number near the start, where headers are, or anywhere."""
    width = int(pick(rng, (2, 4, 8)))
    end = min(len(data), 512) if rng.random() < 0.7 else len(data)
    if end >= width:
        place = int(rng.integers(0, end - width + 1)) // 2 * 2
        order = "little" if rng.random() < 0.5 else "big"
        data[place : place + width] = (pick(rng, NUMBERS) % 256**width).to_bytes(width, order)
    return data


def _append(rng: Generator, data: bytearray) -> bytearray:
    return data + rng.bytes(int(rng.integers(1, 100)))


_OF_BYTES = (_flip, _flip, _flip, _randomise, _cut, _leave_out, _repeat, _zeros, _number, _number, _append)


def of_bytes(rng: Generator, data: bytes) -> bytes:
    """Returns the bytes with one to three things done to them."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        found = pick(rng, _OF_BYTES)(rng, found) if found else found
    return bytes(found)


# Images --------------------------------------------------------------------------------------------------------------


def of_png(rng: Generator, data: bytes) -> bytes:
    """Returns a PNG with chunks changed and their checksums right again, so that the change reaches the decoder."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    number = int(rng.integers(len(chunks)))
    kind, content = chunks[number]
    way = rng.random()
    if kind == b"IHDR" and way < 0.5:
        sides = struct.pack(">II", *(int(pick(rng, (1, 2, 33, 13_000, 100_000, 2**31 - 1))) for _ in range(2)))
        chunks[number] = (kind, sides + content[8:])
    elif way < 0.6 and content:
        chunks[number] = (kind, of_bytes(rng, content))
    elif way < 0.75:
        chunks.insert(number, (kind, content))
    elif way < 0.85:
        del chunks[number]
    else:
        name = bytes(pick(rng, (b"iCCP", b"tRNS", b"PLTE", b"gAMA", b"zTXt", b"eXIf", b"acTL", b"sBIT", b"cHRM")))
        chunks.insert(int(rng.integers(len(chunks) + 1)), (name, rng.bytes(int(rng.integers(0, 60)))))
    parts = [data[:8]]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def of_tiff(rng: Generator, data: bytes) -> bytes:
    """Returns a classic little-endian TIFF with tags of its first directory changed."""
    if data[:4] != b"II*\0":
        return of_bytes(rng, data)
    found = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for _ in range(int(rng.integers(1, 4))):
        place = start + 2 + 12 * int(rng.integers(count))
        way = rng.random()
        if way < 0.15:  # another tag
            struct.pack_into(
                "<H", found, place, int(pick(rng, (254, 256, 258, 259, 262, 277, 284, 317, 322, 338, 339)))
            )
        elif way < 0.25:  # another type
            struct.pack_into("<H", found, place + 2, int(rng.integers(0, 20)))
        elif way < 0.45:  # another count
            struct.pack_into("<I", found, place + 4, pick(rng, NUMBERS) % 2**32)
        elif way < 0.8:
            struct.pack_into("<I", found, place + 8, pick(rng, NUMBERS) % 2**32)
        else:
            struct.pack_into("<I", found, place + 8, int(rng.integers(0, 40)))
    if rng.random() < 0.1:  # a directory that follows itself
        struct.pack_into("<I", found, start + 2 + 12 * count, start)
    return bytes(found)


# Text ----------------------------------------------------------------------------------------------------------------


def of_text(rng: Generator, text: str, *, separators: str = ",\n") -> bytes:
    """Returns the text with words changed, as UTF-8 or in a wrong encoding; or its bytes spoilt."""
    way = rng.random()
    if way < 0.2:
        return of_bytes(rng, text.encode("utf-8", "surrogatepass"))
    for _ in range(int(rng.integers(1, 4))):
        text = _changed(rng, text, separators)
    if way < 0.3:
        return text.encode(str(pick(rng, ("utf-16", "utf-32", "latin-1", "cp1252", "utf-8-sig"))), "replace")
    return text.encode("utf-8", "surrogatepass")


def _changed(rng: Generator, text: str, separators: str) -> str:
    separator = str(pick(rng, separators))
    parts = text.split(separator)
    number = int(rng.integers(len(parts)))
    way = rng.random()
    if way < 0.55:
        parts[number] = str(pick(rng, WORDS))
    elif way < 0.65:
        del parts[number]
    elif way < 0.75:
        parts.insert(number, parts[int(rng.integers(len(parts)))])
    elif way < 0.8:
        parts[number] = parts[number] * int(pick(rng, (2, 10, 1000)))
    elif way < 0.85:
        rng.shuffle(parts)
    else:
        parts[number] = of_bytes(rng, parts[number].encode("utf-8", "replace")).decode("latin-1")
    return separator.join(parts)


def of_runs(rng: Generator, text: str) -> str:
    """Returns run lengths that are wrong in one of the ways in which tables are."""
    words = text.split()
    for _ in range(int(rng.integers(1, 3))):
        number = int(rng.integers(len(words) + 1))
        way = rng.random()
        if way < 0.5:
            words[number : number + 1] = [str(pick(rng, (*WORDS, *NUMBERS)))]
        elif way < 0.7:
            del words[number : number + 1]
        elif way < 0.85:
            words = words[number:] + words[:number]
        else:
            letters = 1 + sum(len(word) + 1 for word in words)
            words = words * min(int(pick(rng, (2, 100, 20_000))), 1 + MOST_LETTERS // letters)
    return str(pick(rng, (" ", " ", "  ", ",", "\t", ";"))).join(words)


def of_wkt(rng: Generator, text: str) -> str:
    """Returns WKT with numbers, brackets and keywords changed."""
    way = rng.random()
    if way < 0.1:
        depth = int(pick(rng, (10, 1_000, 100_000)))
        return "GEOMETRYCOLLECTION(" * depth + text + ")" * depth
    if way < 0.15:
        return "POLYGON(" + "(" * int(pick(rng, (10, 100_000)))
    if way < 0.2:
        ring = ", ".join(f"{int(x)} {int(y)}" for x, y in rng.integers(-50, 50, (int(pick(rng, (3, 500, 20_000))), 2)))
        return f"POLYGON (({ring}, {ring.split(',')[0]}))"
    if way < 0.35:
        kinds = (
            "POINT (1 1)",
            "LINESTRING (0 0, 1 1)",
            "POLYGON EMPTY",
            "CURVEPOLYGON ((0 0,1 1,1 0,0 0))",
            "POLYGON Z",
        )
        return str(pick(rng, (*kinds, "SRID=4326;" + text, "MULTIPOLYGON EMPTY", text + text, "TIN EMPTY")))
    return of_text(rng, text, separators=" ,()").decode("utf-8", "replace")


# JSON ----------------------------------------------------------------------------------------------------------------


def of_json(rng: Generator, value: Any) -> bytes:
    """Returns JSON whose values, keys or nesting are changed, or its text spoilt."""
    way = rng.random()
    if way < 0.15:
        return of_bytes(rng, json.dumps(value).encode())
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        _change_inside(rng, value)
    text = json.dumps(value, ensure_ascii=bool(rng.random() < 0.5))
    if way < 0.2:
        depth = int(pick(rng, (100, 100_000)))
        text = text.replace("0", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _change_inside(rng: Generator, value: Any) -> None:
    """Changes one value at any depth of a list or mapping, in place."""
    places: list[tuple[Any, Any]] = []

    def walk(inside: Any) -> None:
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                walk(inside[key])

    walk(value)
    if not places:
        return
    holder, key = pick(rng, places)
    way = rng.random()
    if way < 0.6:
        holder[key] = pick(rng, VALUES)
    elif way < 0.75:
        del holder[key]
    elif way < 0.9 and isinstance(holder, dict):
        holder[str(pick(rng, WORDS))] = holder.pop(key)
    else:
        holder[key] = [holder[key]] * int(pick(rng, (2, 3, 1000)))


Mutation = Callable[[Generator, bytes], Bytes]
