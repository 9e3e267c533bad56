"""Zip archives as packers write them, and as no packer would."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

LOCAL_BYTES, END_BYTES = 30, 22
# The fields' places in an entry's own header and in the directory's record of it.
LOCAL = {"flags": 6, "method": 8, "crc32": 14, "packed": 18, "size": 22}
CENTRAL = {"flags": 8, "method": 10, "crc32": 16, "packed": 20, "size": 24}
CENTRAL_MODE, CENTRAL_OFFSET = 40, 42
_FORMATS = {"flags": "<H", "method": "<H", "crc32": "<L", "packed": "<L", "size": "<L"}


def zipped(
    files: Mapping[str, bytes | str], *, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b""
) -> bytes:
    """An archive of these files, in this order; names that end in "/" are folders."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = comment
    return packed.getvalue()


def central_start(archive: bytes) -> int:
    (start,) = struct.unpack_from("<L", archive, len(archive) - END_BYTES + 16)
    return int(start)


def with_bytes(archive: bytes, place: int, content: bytes) -> bytes:
    return archive[:place] + content + archive[place + len(content) :]


def declaring(archive: bytes, *, also_locally: bool = True, **fields: int) -> bytes:
    """The archive with other values in the headers of its first entry."""
    for name, value in fields.items():
        content = struct.pack(_FORMATS[name], value)
        archive = with_bytes(archive, central_start(archive) + CENTRAL[name], content)
        if also_locally:
            archive = with_bytes(archive, LOCAL[name], content)
    return archive


def deflated(content: bytes) -> bytes:
    """The raw stream, as it is in a zip."""
    return zlib.compress(content, wbits=-zlib.MAX_WBITS)


def with_payload(name: str, payload: bytes, content: bytes) -> bytes:
    """An archive of one entry, which has any bytes as its packed ones and declares `content`."""
    return declaring(
        zipped({name: payload}, method=zipfile.ZIP_STORED),
        method=zipfile.ZIP_DEFLATED,
        crc32=zlib.crc32(content),
        size=len(content),
    )
