import gzip
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import member, write_tar

from kikitori.corpora.archive import MAX_HEADER_BYTES, unpack
from kikitori.runtime.errors import DataError

NOISE = np.random.default_rng(0).bytes(3000)


def good(archive: Path, mode: str = "w:gz") -> Path:
    members = [(member("cv", tarfile.DIRTYPE), b""), (member("cv/a.mp3"), NOISE), (member("cv/b.mp3"), NOISE[::-1])]
    return write_tar(archive, members, mode)


def refused(archive: Path, **caps: int) -> str:
    """Returns the error message, after checking that nothing is left in the target's folder or next to it."""
    target = archive.parent / "inside" / "target"
    before = {path for path in archive.parent.rglob("*") if path.parent.name != "inside"} | {target.parent}
    with pytest.raises(DataError) as error:
        unpack(archive, target, **caps)
    assert {path for path in archive.parent.rglob("*") if path.name != "target.lock"} == before
    assert str(archive) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_a_good_archive_appears_complete(tmp_path: Path, mode: str) -> None:
    unpack(good(tmp_path / "a.tar", mode), tmp_path / "out" / "target")
    files = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in tmp_path.glob("out/**/*.mp3")}
    assert files == {"target/cv/a.mp3": NOISE, "target/cv/b.mp3": NOISE[::-1]}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["target", "target.lock"]


@pytest.mark.parametrize(
    "bad",
    [
        member("cv/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("cv/link", tarfile.SYMTYPE, "a.mp3"),
        member("cv/link", tarfile.LNKTYPE, "cv/a.mp3"),
        member("cv/pipe", tarfile.FIFOTYPE),
        member("cv/device", tarfile.CHRTYPE),
        member("cv/disk", tarfile.BLKTYPE),
    ],
    ids=["outer symlink", "inner symlink", "hard link", "fifo", "character device", "block device"],
)
def test_links_and_devices_are_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    message = refused(write_tar(tmp_path / "a.tar.gz", [(member("cv/a.mp3"), NOISE), (bad, b"")]))
    assert repr(bad.name) in message
    assert "link or device" in message


@pytest.mark.parametrize("name", ["/tmp/escaped", "../escaped", "cv/../../escaped", "..", "cv/..", "//escaped"])
def test_paths_outside_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    members = [(member("cv/a.mp3"), NOISE), (member(name), b"escaped")]
    assert "outside itself" in refused(write_tar(tmp_path / "a.tar.gz", members))


def test_more_files_than_allowed_are_refused(tmp_path: Path) -> None:
    assert "over 2 files" in refused(good(tmp_path / "a.tar.gz"), max_files=2)
    unpack(tmp_path / "a.tar.gz", tmp_path / "target", max_files=3)


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    assert "5999 bytes" in refused(good(tmp_path / "a.tar.gz"), max_bytes=5999)


def test_an_archive_that_expands_a_thousandfold_is_refused(tmp_path: Path) -> None:
    bomb = write_tar(tmp_path / "a.tar.gz", [(member("zeros"), bytes(2**23))])
    bomb.write_bytes(bomb.read_bytes()[:-8])  # its checksum, so that unpacking all gives another error
    assert "unpacks to over" in refused(bomb)


def test_zeros_after_the_last_file_are_read_up_to_the_limit(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as writer:
        writer.addfile(member("empty"))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar.getvalue() + bytes(2**23)))
    assert "unpacks to over" in refused(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_files_and_folders_without_contents_take_room_as_well(tmp_path: Path, kind: bytes) -> None:
    members = [(member(f"{i}", kind), b"") for i in range(3_000)]
    assert "unpacks to over" in refused(write_tar(tmp_path / "a.tar.gz", members))


def test_comments_of_any_number_are_counted(tmp_path: Path) -> None:
    comments = [(member("././@PaxHeader", tarfile.XGLTYPE), b"60014 comment=" + b"x" * 59_999 + b"\n")] * 100
    assert "unpacks to over" in refused(write_tar(tmp_path / "a.tar.gz", [*comments, (member("a.mp3"), b"")]))


def test_a_path_of_a_thousand_folders_is_refused(tmp_path: Path) -> None:
    deep = write_tar(tmp_path / "a.tar.gz", [(member("a/" * 1_000 + "a.mp3"), b"")])
    assert "a path of 1001 folders" in refused(deep)


def test_members_are_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    extract = tarfile.TarFile.extract

    def counted(tar: tarfile.TarFile, *arguments: Any, **more: Any) -> None:
        kept.append(len(tar.members))
        extract(tar, *arguments, **more)

    monkeypatch.setattr(tarfile.TarFile, "extract", counted)
    unpack(good(tmp_path / "a.tar.gz"), tmp_path / "target")
    assert kept == [0, 0, 0]


def test_a_name_of_a_million_letters_is_refused(tmp_path: Path) -> None:
    members = [(member("././@LongLink", tarfile.GNUTYPE_LONGNAME), b"x" * (MAX_HEADER_BYTES + 1))]
    assert "a header of" in refused(write_tar(tmp_path / "a.tar.gz", members))


def every_cut(archive: Path) -> list[int]:
    size = archive.stat().st_size
    return sorted({*range(0, size, 101), *range(max(0, size - 20), size)})


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_download_truncated_anywhere_is_refused(tmp_path: Path, mode: str) -> None:
    whole = good(tmp_path / "whole.tar", mode).read_bytes()
    for cut in every_cut(tmp_path / "whole.tar"):
        (tmp_path / "a.tar.gz").write_bytes(whole[:cut])
        assert "download the archive again" in refused(tmp_path / "a.tar.gz")


def test_a_plain_tar_truncated_between_two_files_is_refused(tmp_path: Path) -> None:
    whole = good(tmp_path / "whole.tar", "w").read_bytes()
    for cut in (512, 1024, 1024 + 3072, 1024 + 3072 + 100):  # the folder, a.mp3's header, a.mp3, half a header
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        assert "download the archive again" in refused(tmp_path / "a.tar")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(18, 6000), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_content(tmp_path: Path, place: int, bit: int) -> None:
    data = bytearray(good(tmp_path / "flipped.tar.gz").read_bytes())
    data[place] ^= 1 << bit
    (tmp_path / "flipped.tar.gz").write_bytes(data)
    target = tmp_path / f"{place}-{bit}"
    try:
        unpack(tmp_path / "flipped.tar.gz", target)
    except DataError:
        assert not target.exists()
    else:
        assert {(target / "cv" / n).read_bytes() for n in ("a.mp3", "b.mp3")} == {NOISE, NOISE[::-1]}


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no archive, but a login page", NOISE])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    assert "download the archive again" in refused(tmp_path / "a.tar.gz")


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/releases.*check the free space there"):
        unpack(good(tmp_path / "a.tar.gz"), tmp_path / "file" / "releases" / "target")


def test_leftovers_of_a_killed_job_are_removed_and_an_unpacked_archive_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out" / ".target-killed").mkdir(parents=True)
    unpack(good(tmp_path / "a.tar.gz"), tmp_path / "out" / "target")
    assert not (tmp_path / "out" / ".target-killed").exists()
    (tmp_path / "a.tar.gz").write_bytes(b"never opened")
    unpack(tmp_path / "a.tar.gz", tmp_path / "out" / "target")
    assert (tmp_path / "out" / "target" / "cv" / "a.mp3").is_file()


def test_jobs_that_start_together_unpack_once(tmp_path: Path) -> None:
    archive = good(tmp_path / "a.tar.gz")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: unpack(archive, tmp_path / "out" / "target"), range(4)))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["target", "target.lock"]
    assert [p.name for p in (tmp_path / "out" / "target").iterdir()] == ["cv"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "．．/．．/escaped",
            "‥/escaped",
            "..\\..\\escaped",
            "C:\\escaped",
            "~/escaped",
            "cv/\u202edaolnwod",
            "cv/\r\nescaped",
        ),
        *(
            "cv/e\u0301",
            "cv/\u00e9",
            "ＣＶ/escaped",
            "%2e%2e/escaped",
            "cv/.../escaped",
            "cv/a b\t",
            "-rf",
            "cv/\udcff",
        ),
    ],
)
def test_a_name_that_only_looks_like_a_path_outside_stays_inside(tmp_path: Path, name: str) -> None:
    members = [(member("cv/a.mp3"), NOISE), (member(name), b"escaped")]
    before = set(tmp_path.rglob("*"))
    unpack(write_tar(tmp_path / "a.tar.gz", members), tmp_path / "inside" / "target")
    outside = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "inside")} - before
    assert {p.name for p in outside} == {"a.tar.gz"}
    assert (tmp_path / "inside" / "target" / name).read_bytes() == b"escaped"


@pytest.mark.parametrize("headers", [{"path": "../escaped"}, {"path": "/tmp/escaped"}, {"path": "a/../../escaped"}])
def test_a_path_outside_in_an_extended_header_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    hidden = member("cv/harmless.mp3")
    hidden.pax_headers = headers
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("cv/a.mp3"))
        tar.addfile(hidden)
    assert "outside itself" in refused(tmp_path / "a.tar.gz")


def test_a_sparse_file_counts_with_its_full_size(tmp_path: Path) -> None:
    """A GNU sparse file: a header of 512 bytes declares a terabyte."""
    hole = member("cv/hole")
    hole.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"{2**40},0"}
    hole.pax_headers |= {"GNU.sparse.size": str(2**40), "GNU.sparse.name": "cv/hole"}
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(hole)
    assert "unpacks to over" in refused(tmp_path / "a.tar.gz")


def test_a_second_file_of_the_same_name_replaces_the_first(tmp_path: Path) -> None:
    """Of several members with one name, none is written elsewhere."""
    members = [(member("cv/a"), b"1"), (member("cv/a"), b"22"), (member("cv/./a"), b"333")]
    unpack(write_tar(tmp_path / "a.tar.gz", members), tmp_path / "target")
    assert (tmp_path / "target" / "cv" / "a").read_bytes() == b"333"
    (tmp_path / "other").mkdir()
    members = [(member("cv/a"), b"1"), (member("cv/a/b"), b"2")]
    assert "cannot be unpacked" in refused(write_tar(tmp_path / "other" / "b.tar.gz", members))


def test_set_uid_bits_and_foreign_owners_are_dropped(tmp_path: Path) -> None:
    strange = member("cv/strange")
    strange.mode, strange.uid, strange.uname = 0o6777, 12345, "somebody"
    unpack(write_tar(tmp_path / "a.tar.gz", [(strange, b"")]), tmp_path / "target")
    stat = (tmp_path / "target" / "cv" / "strange").stat()
    assert stat.st_mode & 0o7000 == 0
    assert stat.st_mode & 0o022 == 0
    assert stat.st_uid == os.geteuid()
