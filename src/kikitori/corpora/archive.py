"""Unpacks an untrusted archive: nothing is written outside of the target folder, and the size is limited."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import private_folder

# Limits far above any release, and below what fills a disk unnoticed.
MAX_FILES = 10_000_000
MAX_BYTES = 500 * 2**30
# Unpacked over packed size. mp3 does not compress, text tables do about ten times.
MAX_RATIO = 100
# Bytes that any archive may unpack to, however small it is.
SMALL = 2**21
# What a file or folder takes on a disk at least, and the unit in which its contents do.
BLOCK = 4096
# Folders within each other. Releases have four.
MAX_DEPTH = 32
# The size of a header, such as a long name or extended attributes. tarfile reads all of it into memory.
MAX_HEADER_BYTES = 2**16


def unpack(archive: Path, target: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Unpacks the regular files of a .tar.gz into the new folder `target`, which appears complete or not at all.

    If several processes start this together, one of them unpacks and the others wait.
    Raises DataError for links, devices, absolute paths, paths with "..", a damaged archive, or one over the limits.
    """
    try:
        private_folder(target.parent)
        with FileLock(f"{target}.lock"):
            if target.exists():
                return
            for leftover in target.parent.glob(f".{target.name}-*"):  # of a job that was killed
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
                with (
                    archive.open("rb") as raw,
                    tarfile.open(fileobj=raw, tarinfo=_Header) as tar,
                    progress_bar() as bar,
                ):
                    task = bar.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
                    for member in _checked(tar, archive, max_files, max_bytes):
                        # The "data" filter refuses what _checked does, and clears set-uid bits and foreign owners.
                        tar.extract(member, scratch, filter="data")
                        bar.update(task, completed=raw.tell())
                os.rename(scratch, target)
                Path(scratch).mkdir()  # for the context manager to remove
    except DataError:
        raise
    except Exception as error:  # tarfile, the decompressors and hostile headers raise errors of many classes
        raise DataError(
            f"{archive} cannot be unpacked into {target.parent}: {error}; check the free space there, or download the "
            "archive again and check its checksum"
        ) from error


class _Header(tarfile.TarInfo):
    """A header that is read or raises an error: tarfile itself takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end of the archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if not header.isfile() and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _checked(tar: tarfile.TarFile, archive: Path, max_files: int, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Yields the members. Raises DataError before the first one that is not allowed."""
    limit = min(max_bytes, max(SMALL, archive.stat().st_size * MAX_RATIO))
    too_big = f"{archive} unpacks to over {max_files} files or {limit} bytes: not unpacked"
    files = size = 0
    while member := tar.next():
        tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept in memory
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{archive} holds {member.name!r}, a path outside itself: not unpacked")
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{archive} holds {member.name!r}, which is a link or device: not unpacked")
        if len(path.parts) > MAX_DEPTH:
            raise DataError(f"{archive} holds a path of {len(path.parts)} folders, over {MAX_DEPTH}: not unpacked")
        # On the disk: the file and the folders above it, which may be new, and its contents in whole blocks. The offset
        # counts what is read and not kept as well, such as comments.
        files, size = files + 1, size + BLOCK * (len(path.parts) + -(-member.size // BLOCK))
        if files > max_files or max(size, tar.offset) > limit:
            raise DataError(too_big)
        yield member
    # The checksum of a gzip file is at its very end, after everything that tarfile reads.
    while tar.fileobj and (rest := tar.fileobj.read(2**20)):
        size += len(rest)
        if size > limit:
            raise DataError(too_big)
