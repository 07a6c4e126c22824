import os
from itertools import product
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.types import Clip, Reject
from kikitori.runtime.errors import DataError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode("utf-8", "surrogateescape"))
    return path


def clip(folder: Path, path: str, *roots: Path) -> Clip:
    found = AudioFiles(folder, list(map(str, roots))).clip(path, "train", "文", None)
    assert isinstance(found, Clip), found
    return found


def reject(folder: Path, path: str, *roots: Path) -> Reject:
    found = AudioFiles(folder, list(map(str, roots))).clip(path, "train", "文", None)
    assert isinstance(found, Reject), found
    return found


@pytest.mark.parametrize(("folder", "name"), product(("NFC", "NFD"), repeat=2))
@pytest.mark.parametrize(("listed_folder", "listed_name"), product(("NFC", "NFD"), repeat=2))
def test_a_file_is_found_whatever_the_unicode_form_of_its_path(
    tmp_path: Path, folder: str, name: str, listed_folder: str, listed_name: str
) -> None:
    """A Mac writes が as two code points in the names of files, and archives keep that."""
    file = touch(tmp_path / normalize(folder, "ガイド") / normalize(name, "が_ぱ.wav"))
    path = f"{normalize(listed_folder, 'ガイド')}/{normalize(listed_name, 'が_ぱ.wav')}"
    found = clip(tmp_path, path)
    assert found.name == path
    assert found.source == file
    assert found.identity != "missing"


def test_of_two_forms_the_exact_one_is_taken(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        touch(tmp_path / normalize(form, "が.wav"))
    for form in ("NFC", "NFD"):
        assert clip(tmp_path, normalize(form, "が.wav")).source == tmp_path / normalize(form, "が.wav")


def test_a_third_form_beside_two_others_is_missing(tmp_path: Path) -> None:
    half = "か\u3099ぎ.wav"  # one letter in each form
    for form in ("NFC", "NFD"):
        touch(tmp_path / normalize(form, half))
    assert clip(tmp_path, half).identity == "missing"


def test_backslashes_of_windows_are_separators_unless_a_name_holds_one(tmp_path: Path) -> None:
    file = touch(tmp_path / "day1" / "a.wav")
    assert clip(tmp_path, "day1\\a.wav").source == file
    assert clip(tmp_path, "day1\\a.wav").name == "day1\\a.wav"
    odd = touch(tmp_path / "day1\\a.wav")
    assert clip(tmp_path, "day1\\a.wav").source == odd


def test_spaces_around_a_path_are_no_part_of_it_unless_of_the_name(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.wav")
    assert clip(tmp_path, " a.wav ").source == file
    odd = touch(tmp_path / "a.wav ")
    assert clip(tmp_path, "a.wav ").source == odd


def test_folders_outside_are_never_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or [])
    touch(tmp_path / "corpus" / "a.wav")
    for path in ("/etc/か\u3099", "../か\u3099", "か\u3099", str(tmp_path / "corpus" / "か\u3099")):
        AudioFiles(tmp_path / "corpus").clip(path, "train", "文", None)
    assert set(listed) <= {tmp_path / "corpus"}


def test_an_absolute_path_below_the_folder_is_named_within_it(tmp_path: Path) -> None:
    file = touch(tmp_path / "corpus" / "day1" / "a.wav")
    link = tmp_path / "link"
    link.symlink_to("corpus")
    for path in (file, link / "day1" / "a.wav"):
        for folder in (tmp_path / "corpus", link):
            assert clip(folder, str(path)).name == "day1/a.wav"
    decomposed = touch(tmp_path / normalize("NFD", "ガイド") / normalize("NFD", "が.wav"))
    for form in ("NFC", "NFD"):
        path = normalize(form, str(decomposed))
        assert clip(decomposed.parent, path).source == decomposed


def test_files_elsewhere_are_read_only_if_the_user_names_their_folder(tmp_path: Path) -> None:
    disk, other, corpus = tmp_path / "disk", tmp_path / "other", tmp_path / "corpus"
    for folder in (disk, other):
        touch(folder / "a.wav")
    touch(corpus / "b.wav")
    (corpus / "link.wav").symlink_to(disk / "a.wav")
    for path in (str(disk / "a.wav"), "link.wav", "../disk/a.wav"):
        assert reject(corpus, path).reason == "outside the corpus"
        assert reject(corpus, path, other).reason == "outside the corpus"
    assert clip(corpus, str(disk / "a.wav"), other, disk).name == "roots[1]/a.wav"
    assert clip(corpus, str(other / "a.wav"), other, disk).name == "roots[0]/a.wav"
    for path in ("link.wav", "../disk/a.wav"):
        assert clip(corpus, path, disk).name == path
    assert clip(corpus, "b.wav", disk).name == "b.wav"
    with pytest.raises(DataError, match=r"data\.roots: .*nowhere is not a folder"):
        AudioFiles(corpus, [str(tmp_path / "nowhere")])


def test_a_file_that_is_nowhere_is_missing_not_outside(tmp_path: Path) -> None:
    assert reject(tmp_path, "/nowhere/on/this/machine.wav").reason == "missing"
    assert clip(tmp_path, "nowhere.wav").identity == "missing"


def test_parts_of_a_recording_have_their_own_names_and_identities(tmp_path: Path) -> None:
    touch(tmp_path / "talk.wav")
    files = AudioFiles(tmp_path)
    names = {}
    for part in (None, (0.0, 2.5), (2.5, None), (7200.001, 7203.25)):
        found = files.clip("talk.wav", "train", "文", None, part)
        assert isinstance(found, Clip)
        assert found.recording == "talk.wav"
        names[found.name] = found
    assert list(names) == ["talk.wav", "talk.wav#t=0,2.5", "talk.wav#t=2.5", "talk.wav#t=7200.001,7203.25"]
    assert len({found.identity for found in names.values()}) == 4
    assert [found.duration_s for found in names.values()] == [None, 2.5, None, pytest.approx(3.249)]


PATHS = st.text(st.sampled_from("ab./\\~が\u3099\0 \udcff#"), max_size=12)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, absolute=st.booleans())
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str, absolute: bool) -> None:
    corpus = tmp_path / "corpus"
    if not corpus.exists():
        for name in ("a", "b/a", "が", "a.b"):
            touch(corpus / name)
        for name in ("a", "b", "ab"):
            touch(tmp_path / "out" / name)
        (corpus / "ab").symlink_to("../out/ab")
    found = AudioFiles(corpus).clip(f"{corpus}/{path}" if absolute else path, "train", "文", None)
    if isinstance(found, Clip):
        assert isinstance(found.source, Path)
        assert Path(os.path.realpath(found.source)).is_relative_to(corpus)
        assert not os.path.isabs(found.name)
    else:
        assert found.reason in ("outside the corpus", "missing", "malformed row", "not UTF-8")
