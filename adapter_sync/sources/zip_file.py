"""A zip archive, read with suspicion: nothing that it says about itself is believed unchecked.

zipfile reads the central directory, after the size of it was checked. It doesn't read the entries:
it cuts them off at the size they declare, and lets them overlap.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.words import quoted

MAX_ENTRIES = 1000
MAX_DIRECTORY_BYTES = 1024 * 1024
MAX_NAME_LENGTH = 512
_CHUNK_BYTES = 1 << 20
_MAX_COMMENT_BYTES = 0xFFFF
_IN_ZIP64_FIELD = 0xFFFFFFFF

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_LOCATOR_BYTES = 20
_ZIP64_SIGNATURE = b"PK\x06\x07"

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # the content, strongly, the directory
_SIZES_FOLLOW = 0x8
_PATCH = 0x20  # the content changes another file
_UTF_8 = 0x800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file in the archive: its packed bytes are those from `begin` to `end`.

    `size_bytes` and `crc32` are what the archive declares, checked by `unpack` only.
    """

    path: PurePosixPath
    begin: int
    end: int
    is_deflated: bool
    size_bytes: int
    crc32: int

    @property
    def words(self) -> str:
        """The entry, as errors name it."""
        return f"The zip's entry {quoted(str(self.path))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directory:
    begin: int
    entries: int


def is_zip(start: bytes) -> bool:
    """Whether a file that begins with these four bytes is a zip archive, perhaps an empty one.

    No safetensors file begins so: its header would be over 60 MB long.
    """
    return start in (_LOCAL_SIGNATURE, _END_SIGNATURE)


def read_entries(file: BinaryIO) -> tuple[Entry, ...]:
    """The archive's files, folders left out, in the order of the directory.

    Raises:
        InvalidAdapterError: an entry may not be in an upload, or readers may disagree about it.

    """
    directory = _find_directory(file)
    infos = _read_directory(file, directory)
    paths = [_checked_path(info) for info in infos]
    _check_unique(paths)
    starts = [_checked_data_start(file, info, directory.begin) for info in infos]
    _check_layout(infos, starts, directory.begin)
    return tuple(
        Entry(
            path=path,
            begin=begin,
            end=begin + info.compress_size,
            is_deflated=info.compress_type == zipfile.ZIP_DEFLATED,
            size_bytes=info.file_size,
            crc32=info.CRC,
        )
        for info, path, begin in zip(infos, paths, starts, strict=True)
        if not _is_folder(info)
    )


def unpack(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The entry's content in pieces, together never more than it declares.

    Raises:
        InvalidAdapterError: it is damaged, or is not what it declares; seen at its end at the
            latest.

    """
    size_bytes = crc32 = 0
    for piece in _inflated(file, entry) if entry.is_deflated else _stored(file, entry):
        size_bytes += len(piece)
        if size_bytes > entry.size_bytes:
            break
        crc32 = zlib.crc32(piece, crc32)
        yield piece
    if size_bytes != entry.size_bytes:
        more_or_less = "more" if size_bytes > entry.size_bytes else "less"
        raise InvalidAdapterError(
            f"{entry.words} unpacks to {more_or_less} than the {entry.size_bytes} bytes that the "
            "zip declares. Pack it again."
        )
    if crc32 != entry.crc32:
        raise InvalidAdapterError(
            f"{entry.words} is damaged: its checksum is wrong. Pack it again."
        )


def _find_directory(file: BinaryIO) -> _Directory:
    """The directory's place. zipfile would come to the same one, or is not let near the file."""
    size_bytes = file.seek(0, os.SEEK_END)
    tail_begin = max(size_bytes - _END_RECORD.size - _MAX_COMMENT_BYTES, 0)
    file.seek(tail_begin)
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or at + _END_RECORD.size > len(tail):
        raise _cut_off()
    (_, disk, first_disk, entries_here, entries, directory_bytes, begin, comment_bytes) = (
        _END_RECORD.unpack_from(tail, at)
    )
    if at + _END_RECORD.size + comment_bytes != len(tail):
        raise _cut_off()
    locator = tail[max(at - _ZIP64_LOCATOR_BYTES, 0) : at]
    if disk or first_disk or entries_here != entries or locator.startswith(_ZIP64_SIGNATURE):
        raise InvalidAdapterError(
            "The zip is in several parts or in the Zip64 format. Pack it again as an ordinary zip."
        )
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise InvalidAdapterError(
            f"The zip has {entries} entries in a directory of {directory_bytes} bytes, at most "
            f"{MAX_ENTRIES} in {MAX_DIRECTORY_BYTES} are allowed. Pack only the adapter."
        )
    if begin + directory_bytes != tail_begin + at:
        raise _cut_off()
    if entries == 0:
        raise InvalidAdapterError("The zip is empty.")
    return _Directory(begin=begin, entries=entries)


def _read_directory(file: BinaryIO, directory: _Directory) -> Sequence[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise InvalidAdapterError(
            f"The zip's directory can't be read: {error}. Pack it again."
        ) from error
    if len(infos) != directory.entries:
        raise InvalidAdapterError(
            f"The zip's directory lists {len(infos)} entries, but says {directory.entries}. Pack "
            "it again."
        )
    return infos


def _checked_path(info: zipfile.ZipInfo) -> PurePosixPath:
    """The entry's path, if its name, kind and packing are ones that an upload may have."""
    # zipfile cuts `filename` off at a NUL.
    name = info.orig_filename
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidAdapterError(
            f"{_words(info)} has a name of {len(name)} characters, at most {MAX_NAME_LENGTH} are "
            "allowed."
        )
    path = PurePosixPath(name)
    is_outside = path.is_absolute() or name[1:2] == ":" or ".." in path.parts
    is_nothing = not path.parts and not _is_folder(info)
    if is_outside or is_nothing or "\0" in name or "\\" in name:
        raise InvalidAdapterError(
            f"{_words(info)} has a name that is not allowed: expected a path below the zip's own "
            "folder, with '/' between its parts."
        )
    _check_kind(info)
    return path


def _check_kind(info: zipfile.ZipInfo) -> None:
    plain = stat.S_IFDIR if _is_folder(info) else stat.S_IFREG
    # Not every system that packs has modes: then they are 0.
    if stat.S_IFMT(info.external_attr >> 16) not in (0, plain):
        raise InvalidAdapterError(
            f"{_words(info)} is a link or another special file. Pack the file itself."
        )
    if info.flag_bits & _ENCRYPTED:
        raise InvalidAdapterError(f"{_words(info)} is encrypted. Pack it without a password.")
    if info.compress_type not in _METHODS or info.flag_bits & _PATCH:
        raise InvalidAdapterError(
            f"{_words(info)} is compressed by method {info.compress_type}, which is not supported: "
            "pack it with deflate or uncompressed."
        )


def _words(info: zipfile.ZipInfo) -> str:
    return f"The zip's entry {quoted(info.orig_filename)}"


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("/")


def _check_unique(paths: Sequence[PurePosixPath]) -> None:
    seen: set[PurePosixPath] = set()
    for path in paths:
        if path in seen:
            raise InvalidAdapterError(f"The zip's entry {quoted(str(path))} is there twice.")
        seen.add(path)


def _checked_data_start(file: BinaryIO, info: zipfile.ZipInfo, directory_begin: int) -> int:
    """Where the entry's packed bytes begin, if its own header says what the directory says."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8 else "cp437")
    begin = info.header_offset + _LOCAL_HEADER.size + len(name)
    if begin > directory_begin:
        raise InvalidAdapterError(f"{_words(info)} lies outside the zip. Pack it again.")
    file.seek(info.header_offset)
    (
        signature,
        _,
        flags,
        method,
        _,
        _,
        crc32,
        packed_bytes,
        size_bytes,
        name_bytes,
        extra_bytes,
    ) = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    declared = ((crc32, info.CRC), (packed_bytes, info.compress_size), (size_bytes, info.file_size))
    if (
        signature != _LOCAL_SIGNATURE
        or name_bytes != len(name)
        or file.read(len(name)) != name
        or method != info.compress_type
        or flags & (_ENCRYPTED | _PATCH)
        or not (
            flags & _SIZES_FOLLOW
            or all(here in (there, _IN_ZIP64_FIELD) for here, there in declared)
        )
    ):
        raise InvalidAdapterError(
            f"{_words(info)} has a header that differs from the zip's directory. Pack it again."
        )
    return begin + int(extra_bytes)


def _check_layout(
    infos: Sequence[zipfile.ZipInfo], starts: Sequence[int], directory_begin: int
) -> None:
    """Entries may not share bytes: a few megabytes could hold petabytes so."""
    placed = sorted(
        (info.header_offset, start + info.compress_size, info.orig_filename)
        for info, start in zip(infos, starts, strict=True)
    )
    for (_, end, name), (next_begin, _, _) in pairwise([*placed, (directory_begin, 0, "")]):
        if end > next_begin:
            raise InvalidAdapterError(
                f"The zip's entry {quoted(name)} overlaps what follows it. Pack it again."
            )


def _stored(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    file.seek(entry.begin)
    left = entry.end - entry.begin
    while piece := file.read(min(_CHUNK_BYTES, left)):
        left -= len(piece)
        yield piece


def _inflated(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = _stored(file, entry)
    while not inflater.eof:
        data = inflater.unconsumed_tail or next(packed, b"")
        try:
            piece = inflater.decompress(data, _CHUNK_BYTES)
        except zlib.error as error:
            raise _damaged(entry) from error
        # Without input there may still be output that had no room before.
        if not (data or piece):
            break
        if piece:
            yield piece
    if not inflater.eof or inflater.unused_data or next(packed, b""):
        raise _damaged(entry)


def _damaged(entry: Entry) -> InvalidAdapterError:
    return InvalidAdapterError(f"{entry.words} is damaged: it can't be unpacked. Pack it again.")


def _cut_off() -> InvalidAdapterError:
    return InvalidAdapterError(
        "The zip is cut off or damaged: its directory is not where its end says. Upload it again."
    )
