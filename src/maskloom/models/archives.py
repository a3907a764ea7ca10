"""Where the members of zip and tar archives lie, for members that lie in the file as they are.

Nothing is extracted or decompressed, so a name in an archive is never a path and a small file never becomes a large
one; every place is checked against the size of the file.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, cast

from maskloom.models.inert_pickle import Refused

MAX_DIRECTORY_BYTES = 4 * 2**20
"""Bytes of a zip's directory; one of torch's takes about 100 per storage."""
MAX_TAR_MEMBERS = 100


@dataclass(frozen=True, slots=True)
class Member:
    """A file within an archive, which lies there as it is."""

    start: int
    """First byte in the file."""
    size: int
    """Length in bytes."""
    checksum: int | None = None
    """CRC-32 as a zip states it; a tar has none."""


class _Directory:
    """A stream as ``zipfile`` reads a directory from it: no more at once than a directory may have."""

    def __init__(self, stream: BufferedReader) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes; raises ``Refused`` where more are asked for than a directory may have."""
        if size > MAX_DIRECTORY_BYTES:
            raise Refused(f"a zip archive whose directory has more than {MAX_DIRECTORY_BYTES // 2**20} MiB")
        return self._stream.read(size if size >= 0 else MAX_DIRECTORY_BYTES)


def zip_members(stream: BufferedReader, size: int) -> dict[str, Member]:
    """Returns the members by name; raises ``Refused`` for compressed ones, and ones not within the file."""
    try:
        entries = zipfile.ZipFile(cast(IO[bytes], _Directory(stream))).infolist()
    except Refused:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError, OverflowError):
        raise Refused("a zip archive that is damaged or cut off") from None
    members: dict[str, Member] = {}
    for entry in entries:
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Refused(
                f"a zip archive with a compressed member ({name[:80]!r}), a TorchScript program or not torch's at all; "
                "save the network's state_dict with torch.save"
            )
        if name in members:
            raise Refused(f"a zip archive with two members of one name ({name[:80]!r})")
        stream.seek(max(entry.header_offset, 0))
        header = stream.read(30)
        if entry.header_offset < 0 or len(header) != 30 or header[:4] != b"PK\3\4":
            raise Refused(f"a zip archive that is damaged: its member {name[:80]!r} is not where it should be")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + entry.file_size > size:
            raise Refused(f"a zip archive that is cut off: its member {name[:80]!r} reaches beyond the file")
        members[name] = Member(start, entry.file_size, entry.CRC)
    return members


def tar_members(stream: BufferedReader, size: int) -> dict[str, Member]:
    """Returns the plain files of a tar by name; their headers are blocks of 512 bytes before each."""
    members: dict[str, Member] = {}
    position = 0
    while position + 512 <= size and len(members) < MAX_TAR_MEMBERS:
        stream.seek(position)
        header = stream.read(512)
        if not header.strip(b"\0"):
            break
        try:
            num_bytes = int(header[124:136].strip(b" \0"), 8)
        except ValueError:
            raise Refused("a tar archive that is damaged") from None
        if num_bytes < 0 or position + 512 + num_bytes > size:
            raise Refused("a tar archive that is cut off")
        if header[156:157] in (b"0", b"\0"):
            members[header[:100].rstrip(b"\0").decode("latin-1")] = Member(position + 512, num_bytes)
        position += 512 + (num_bytes + 511) // 512 * 512
    return members
