"""Unpack an archive that comes from a stranger: nothing is written outside the target, nothing without bound."""

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kikitori.errors import DataError

# Common Voice 27 English, the largest language: 2.6 million clips and some 90 GB.
MAX_FILES = 10_000_000
MAX_BYTES = 500 * 2**30
# mp3 does not compress; a text table does, some ten times.
MAX_RATIO = 100


def unpack(archive: Path, target: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Unpack the regular files of a .tar.gz into a new folder `target`, which appears whole or not at all.

    Raises DataError for links, devices, absolute or climbing paths, a damaged archive, or one over the caps.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        try:
            with tarfile.open(archive, "r|*") as tar:
                for member in _checked(tar, archive, max_files, max_bytes):
                    # The "data" filter refuses what _checked does, and clears set-uid and foreign owners.
                    tar.extract(member, scratch, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"{archive} cannot be unpacked: {error}; download it again and check its checksum"
            ) from error
        shutil.move(scratch, target)
        Path(scratch).mkdir()  # for the context manager to remove


def _checked(tar: tarfile.TarFile, archive: Path, max_files: int, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    limit = min(max_bytes, max(2**20, archive.stat().st_size * MAX_RATIO))
    files = size = 0
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{archive} holds {member.name!r}, a path outside itself: not unpacked")
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{archive} holds {member.name!r}, which is a link or device: not unpacked")
        files, size = files + 1, size + member.size
        if files > max_files or size > limit:
            raise DataError(f"{archive} unpacks to over {files - 1} files or {limit} bytes: not unpacked")
        yield member
