import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import RELEASES, common_voice_row, write_clip, write_common_voice, write_tsv

from kikitori.corpora import common_voice
from kikitori.corpora.types import Clip, Corpus, Reject
from kikitori.runtime.errors import DataError

SPLITS = {"train": 3, "dev": 2, "test": 1}


def release(tmp_path: Path, **tables: int) -> Path:
    return write_common_voice(tmp_path / "cv-corpus-27.0-2026-09-09" / "ja", {**SPLITS, **tables})


def reading(folder: Path, *train_splits: str, language: str = "ja") -> Corpus:
    return common_voice.read(str(folder), language, train_splits or ["train"], folder.parent / "cache")


def message(folder: Path, *train_splits: str, language: str = "ja") -> str:
    with pytest.raises(DataError) as error:
        reading(folder, *train_splits, language=language)
    return str(error.value)


def counts(corpus: Corpus) -> dict[str, int]:
    return {split: sum(clip.split == split for clip in corpus.clips) for split in ("train", "validation", "test")}


def train_rows(tmp_path: Path, table: bytes) -> tuple[list[Clip], list[Reject]]:
    """Returns the clips and rejects of a training table with these bytes, in a release whose other tables are good."""
    folder = release(tmp_path)
    (folder / "train.tsv").write_bytes(table)
    corpus = reading(folder)
    return [clip for clip in corpus.clips if clip.split == "train"], list(corpus.rejects)


def table_of(*sentences: bytes) -> bytes:
    rows = [b"new %d\tnew_%d.mp3\t%s\tja" % (i, i, sentence) for i, sentence in enumerate(sentences)]
    return b"\n".join([b"client_id\tpath\tsentence\tlocale", *rows]) + b"\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_release_that_another_user_unpacked_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "cv-corpus-27.0-ja.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release(tmp_path).parent, "cv-corpus-27.0-2026-09-09")
    assert counts(reading(archive))
    (unpacked,) = [path for path in (tmp_path / "cache" / "releases").iterdir() if path.is_dir()]
    os.chown(unpacked, 12345, -1)
    with pytest.raises(DataError, match="belongs to another user"):
        reading(archive)


def test_the_three_forms_of_a_release_give_the_same_corpus(tmp_path: Path) -> None:
    folder = release(tmp_path)
    with tarfile.open(tmp_path / "cv-corpus-27.0-ja.tar.gz", "w:gz") as tar:
        tar.add(folder.parent, folder.parent.name)
    archive, extracted, language = (
        reading(form) for form in (tmp_path / "cv-corpus-27.0-ja.tar.gz", folder.parent, folder)
    )
    assert counts(archive) == {"train": 3, "validation": 2, "test": 1}
    facts = [
        [(c.name, c.split, c.text, c.speaker, c.source.read_bytes()) for c in corpus.clips]  # type: ignore[union-attr]
        for corpus in (archive, extracted, language)
    ]
    assert facts[0] == facts[1] == facts[2]
    assert {c.description for c in (archive, extracted, language)} == {"Common Voice, cv-corpus-27.0-2026-09-09/ja"}
    assert reading(tmp_path / "cv-corpus-27.0-ja.tar.gz") == archive
    assert len(list((tmp_path / "cache" / "releases").glob("*/cv-corpus*"))) == 1


def test_the_folder_of_the_recordings_stands_for_its_release(tmp_path: Path) -> None:
    folder = release(tmp_path / "ja", train=2, dev=1, test=1)
    assert counts(reading(folder / "clips")) == counts(reading(folder))


@pytest.mark.parametrize("columns", RELEASES.values(), ids=RELEASES)
def test_the_columns_of_every_release_are_read(tmp_path: Path, columns: str) -> None:
    corpus = reading(write_common_voice(tmp_path / "ja", SPLITS, columns))
    assert not corpus.rejects
    assert [(c.name, c.text, c.speaker) for c in corpus.clips][:2] == [
        ("clip_0.mp3", "文 0", "speaker 0"),
        ("clip_1.mp3", "文 1", "speaker 1"),
    ]


def test_windows_line_ends_and_a_byte_order_mark_are_not_part_of_a_cell(tmp_path: Path) -> None:
    table = b"\xef\xbb\xbf" + table_of("一".encode(), "二".encode()).replace(b"\n", b"\r\n")
    clips, rejects = train_rows(tmp_path, table)
    assert [(clip.speaker, clip.text) for clip in clips] == [("new 0", "一"), ("new 1", "二")]
    assert not rejects


def test_quotation_marks_are_part_of_the_sentence(tmp_path: Path) -> None:
    sentences = ['"はい"', '"と言った', "彼は\"はい'と", '""', "'", "「"]
    clips, rejects = train_rows(tmp_path, table_of(*(s.encode() for s in sentences)))
    assert [clip.text for clip in clips] == sentences
    assert not rejects


def test_a_row_in_another_encoding_is_one_reject_between_good_neighbours(tmp_path: Path) -> None:
    for one, three in (("one", "three"), ("一", "三")):
        clips, rejects = train_rows(tmp_path, table_of(one.encode(), "déjà".encode("latin-1"), three.encode()))
        assert [clip.text for clip in clips] == [one, three]
        assert [(r.reason, r.split) for r in rejects] == [("not UTF-8", "train")]
        assert "new_1.mp3" in rejects[0].name


@pytest.mark.parametrize("cells", ["s\tclip.mp3", "s\tclip.mp3\ttext", "s\tclip.mp3\ttext\tja\tsurplus", "s"])
def test_a_row_with_too_few_or_too_many_cells_is_one_reject_between_good_neighbours(tmp_path: Path, cells: str) -> None:
    lines = table_of(b"one", b"two").splitlines(keepends=True)
    clips, rejects = train_rows(tmp_path, b"".join([*lines[:2], cells.encode() + b"\n", lines[2]]))
    assert [clip.text for clip in clips] == ["one", "two"]
    assert [(r.reason, r.detail) for r in rejects] == [("malformed row", "train.tsv line 3")]


@pytest.mark.parametrize("path", ["../dev.tsv", "/etc/hostname", "sub/../../dev.tsv", "link.mp3", "..\\dev.tsv"])
def test_a_path_that_leaves_clips_is_a_reject(tmp_path: Path, path: str) -> None:
    folder = release(tmp_path)
    (folder / "clips" / "link.mp3").symlink_to(folder / "dev.tsv")
    write_tsv(folder / "train.tsv", [common_voice_row(0), common_voice_row(1, path=path), common_voice_row(2)])
    corpus = reading(folder)
    assert counts(corpus)["train"] == 2
    assert [(r.name, r.reason) for r in corpus.rejects] == [(path, "outside the corpus")]


def test_a_loop_of_links_counts_as_a_missing_file(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (folder / "clips" / "clip_0.mp3").unlink()
    (folder / "clips" / "clip_0.mp3").symlink_to("clip_0.mp3")
    assert [clip.identity for clip in reading(folder).clips if clip.name == "clip_0.mp3"] == ["missing"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.binary(max_size=40), max_size=6))
def test_every_row_is_a_clip_or_a_reject_whatever_its_bytes(tmp_path: Path, rows: list[bytes]) -> None:
    body = [row.replace(b"\n", b"").replace(b"\r", b"") for row in rows]
    lines = [b"speaker\tclip.mp3\t" + row + b"\tja" for row in body]
    (tmp_path / "clips").mkdir(exist_ok=True)
    for table in ("train", "dev", "test"):
        (tmp_path / f"{table}.tsv").write_bytes(b"\n".join([b"client_id\tpath\tsentence\tlocale", *lines]))
    refused: list[str] = []
    try:
        corpus = reading(tmp_path)
    except DataError as error:
        refused.append(str(error))
    if refused:  # most of the rows are not UTF-8
        assert "is not UTF-8; it looks like" in refused[0]
        return
    assert len(corpus.clips) + len(corpus.rejects) == 3 * len(rows)
    for text in (clip.text for clip in corpus.clips):
        text.encode()


def test_several_tables_can_make_the_training_split(tmp_path: Path) -> None:
    folder = release(tmp_path, other=4)
    assert counts(reading(folder, "train", "other")) == {"train": 7, "validation": 2, "test": 1}


def test_listed_durations_are_read_and_missing_or_malformed_ones_are_none(tmp_path: Path) -> None:
    folder = release(tmp_path)
    assert {clip.duration_s for clip in reading(folder).clips} == {None}
    lines = [
        "clip\tduration[ms]",
        "clip_0.mp3\t500",
        "clip_1.mp3\tlong",
        "clip_2.mp3",
        "clip_9.mp3\t100",
        "",
        "clip_4.mp3\t7",
    ]
    (folder / "clip_durations.tsv").write_text("\n".join(lines))
    listed = {clip.name: clip.duration_s for clip in reading(folder).clips}
    assert {name: s for name, s in listed.items() if s is not None} == {"clip_0.mp3": 0.5, "clip_4.mp3": 0.007}
    (folder / "clip_durations.tsv").write_text("clip\tms\nclip_0.mp3\t500")
    assert {clip.duration_s for clip in reading(folder).clips} == {None}


def test_identity_changes_with_the_audio_alone(tmp_path: Path) -> None:
    folder = release(tmp_path)
    before = {clip.name: clip.identity for clip in reading(folder).clips}
    write_tsv(folder / "dev.tsv", [common_voice_row(3, sentence="別"), common_voice_row(4)])
    assert {clip.name: clip.identity for clip in reading(folder).clips} == before
    write_clip(folder / "clips" / "clip_3.mp3", hertz=999, seconds=0.7)
    changed = {clip.name for clip in reading(folder).clips if clip.identity != before[clip.name]}
    assert changed == {"clip_3.mp3"}


def test_a_missing_release_is_named_with_the_remedy(tmp_path: Path) -> None:
    error = message(tmp_path / "no-such.tar.gz")
    assert f"data.release={tmp_path / 'no-such.tar.gz'}" in error
    assert "Mozilla Data Collective" in error


def test_a_release_of_another_language_is_named_with_the_remedy(tmp_path: Path) -> None:
    folder = release(tmp_path)
    assert f"data.language=de: {folder.parent} holds ja. Set data.language" in message(folder.parent, language="de")
    assert "is of language ja. Set data.language" in message(folder, language="de")
    (tmp_path / "empty").mkdir()
    assert "no language folder, which has a folder clips or audios" in message(tmp_path / "empty")


def test_a_missing_table_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    folder = release(tmp_path)
    corpus = reading(folder, "nonesuch")
    assert corpus.absent == {
        "train": f"{folder}/nonesuch.tsv does not exist; the release holds dev.tsv, test.tsv, train.tsv"
    }
    error = message(folder, "train", "nonesuch")
    assert "nonesuch.tsv does not exist" in error
    assert "dev.tsv, test.tsv, train.tsv. See data.train_splits" in error


def test_only_the_tables_of_the_needed_splits_must_exist(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (folder / "train.tsv").unlink()
    (folder / "dev.tsv").write_bytes(b"no table")
    corpus = common_voice.read(str(folder), "ja", ["train"], tmp_path / "cache", ["test"])
    assert counts(corpus) == {"train": 0, "validation": 0, "test": 1}
    (folder / "dev.tsv").unlink()
    corpus = reading(folder)
    assert counts(corpus) == {"train": 0, "validation": 0, "test": 1}
    assert set(corpus.absent) == {"train", "validation"}


def write_validated(folder: Path) -> Path:
    """A release with 10 validated clips: those of train, dev and test, one more of each of their speakers, and two."""
    rows = [common_voice_row(i) for i in range(6)]
    rows += [common_voice_row(10 + i, client_id=f"speaker {i}") for i in (0, 3, 5)]
    rows += [common_voice_row(20, client_id="new"), common_voice_row(21, client_id="new")]
    write_tsv(folder / "validated.tsv", rows)
    return folder


def test_clips_and_speakers_of_dev_and_test_are_not_trained_on(tmp_path: Path) -> None:
    corpus = reading(write_validated(release(tmp_path)), "validated")
    assert [c.name for c in corpus.clips if c.split == "train"] == [f"clip_{i}.mp3" for i in (0, 1, 2, 10, 20, 21)]
    assert counts(corpus) == {"train": 6, "validation": 2, "test": 1}
    assert Counter(r.reason for r in corpus.rejects) == {
        "in validation or test": 3,
        "of a speaker in validation or test": 2,
    }
    folder = tmp_path / "cv-corpus-27.0-2026-09-09" / "ja"
    shared = common_voice.read(str(folder), "ja", ["validated"], tmp_path, allow_shared_speakers=True)
    assert Counter(r.reason for r in shared.rejects) == {"in validation or test": 3}
    alone = common_voice.read(str(folder), "ja", ["validated"], tmp_path, ["train"])
    assert alone.clips == [c for c in corpus.clips if c.split == "train"]
    assert alone.rejects == corpus.rejects


def test_a_clip_in_two_training_tables_is_one_clip(tmp_path: Path) -> None:
    corpus = reading(write_validated(release(tmp_path)), "train", "validated")
    assert [c.name for c in corpus.clips if c.split == "train"] == [f"clip_{i}.mp3" for i in (0, 1, 2, 10, 20, 21)]
    assert [r.name for r in corpus.rejects if r.reason == "listed twice"] == [f"clip_{i}.mp3" for i in range(3)]


def test_a_table_that_is_trained_on_is_no_split_of_its_own(tmp_path: Path) -> None:
    corpus = reading(release(tmp_path), "train", "dev")
    assert counts(corpus) == {"train": 5, "validation": 0, "test": 1}
    assert corpus.absent == {"validation": "data.train_splits contains dev"}
    assert not corpus.rejects


def test_links_may_end_in_a_folder_that_the_user_names(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (tmp_path / "disk").mkdir()
    for path in (folder / "clips").iterdir():
        path.rename(tmp_path / "disk" / path.name)
        path.symlink_to(tmp_path / "disk" / path.name)
    assert {reject.reason for reject in reading(folder).rejects} == {"outside the corpus"}
    corpus = common_voice.read(str(folder), "ja", ["train"], tmp_path, roots=[str(tmp_path / "disk")])
    assert counts(corpus) == {"train": 3, "validation": 2, "test": 1}
    assert [clip.name for clip in corpus.clips][:2] == ["clip_0.mp3", "clip_1.mp3"]


SPONTANEOUS = (
    "client_id audio_id audio_file duration_ms prompt_id prompt transcription votes language split quality_tags"
)


def write_spontaneous(folder: Path) -> Path:
    """A release of Spontaneous Speech with eight rows: two are not transcribed, and two are in no split."""
    splits = ["train", "dev", "test", "train", "", "unassigned", "unassigned", "train"]
    rows = []
    for i, split in enumerate(splits):
        name = f"spontaneous-speech-ja-{i}.mp3"
        write_clip(folder / "audios" / name, hertz=200 + 10 * i)
        text = "" if i in (3, 5) else f"えっと [um] {i}"
        row = {"client_id": f"speaker {i}", "audio_file": name, "duration_ms": "500", "transcription": text}
        rows.append({**row, "split": split, "prompt": "好きな\u3000食べ物は?", "language": "Japanese"})
    write_tsv(folder / "ss-corpus-ja.tsv", rows, SPONTANEOUS)
    write_tsv(folder / "ss-reported-audios-ja.tsv", [], "client_id audio_id audio_file")
    return folder


def test_spontaneous_speech_is_read_from_its_folder_and_its_archive(tmp_path: Path) -> None:
    folder = write_spontaneous(tmp_path / "sps-corpus-3.0-2026-03-09-ja")
    with tarfile.open(tmp_path / "sps.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    for form in (folder, tmp_path / "sps.tar.gz"):
        corpus = reading(form)
        assert [(c.name[-5:], c.split, c.text) for c in corpus.clips] == [
            (f"{i}.mp3", split, f"えっと [um] {i}")
            for i, split in ((0, "train"), (7, "train"), (1, "validation"), (2, "test"))
        ]
        assert {(c.speaker or "")[:7] for c in corpus.clips} == {"speaker"}
        assert {c.duration_s for c in corpus.clips} == {0.5}
        assert Counter(r.reason for r in corpus.rejects) == {"not transcribed": 2, "in no split": 2}
        assert corpus.description == "Common Voice, sps-corpus-3.0-2026-03-09-ja"


def test_spontaneous_speech_without_a_split_can_be_trained_on(tmp_path: Path) -> None:
    corpus = reading(write_spontaneous(tmp_path / "sps"), "train", "unassigned")
    assert counts(corpus) == {"train": 4, "validation": 1, "test": 1}
    assert Counter(r.reason for r in corpus.rejects) == {"not transcribed": 2}


def test_spontaneous_speech_in_another_language_is_named(tmp_path: Path) -> None:
    folder = write_spontaneous(tmp_path / "sps")
    assert "data.language=de: " in message(folder, language="de")
    assert "holds ja. Set data.language" in message(folder, language="de")


@pytest.mark.parametrize("header", [b"client_id\tpath\ttext\tlocale\n", b"", "größe\tpath\n".encode()])
def test_a_table_without_a_sentence_column_is_named_with_its_columns(tmp_path: Path, header: bytes) -> None:
    folder = release(tmp_path)
    (folder / "dev.tsv").write_bytes(header)
    error = message(folder)
    assert "dev.tsv has no column" in error
    assert "sentence" in error
    assert "data=manifest" in error
    error.encode()


def test_a_cell_over_the_size_limit_is_reported_with_table_and_line(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (folder / "train.tsv").write_bytes(table_of(b"one", b"x" * 200_000))
    assert "train.tsv cannot be read beyond line 2: field larger" in message(folder)


def languages(tmp_path: Path, **locales: str) -> list[str]:
    """Writes a release of several languages, whose speakers are the same; returns the folders of the languages."""
    folders = []
    for name, locale in locales.items():
        folder = write_common_voice(tmp_path / "cv-corpus-27.0-2026-09-09" / name, SPLITS)
        for table in folder.glob("*.tsv"):
            table.write_bytes(table.read_bytes().replace(b"\tja\t", f"\t{locale}\t".encode()))
        folders.append(str(folder))
    return folders


def several(tmp_path: Path, *folders: str) -> Corpus:
    return common_voice.read_several(folders, ["train"], tmp_path / "cache")


def test_several_languages_are_one_corpus_whose_clips_state_theirs(tmp_path: Path) -> None:
    folders = languages(tmp_path, ja="ja", sv="sv")
    (tmp_path / "svenska").symlink_to(folders[1])
    corpus = several(tmp_path, folders[0], str(tmp_path / "svenska"))
    assert corpus.description == "Common Voice, cv-corpus-27.0-2026-09-09/ja, svenska"
    for folder, locale in zip(folders, ("ja", "sv"), strict=True):
        alone = reading(Path(folder), language=locale)
        own = [clip for clip in corpus.clips if clip.language == locale]
        assert [(c.name, c.split, c.text) for c in own] == [
            (f"{locale}/{c.name}", c.split, c.text) for c in alone.clips
        ]
        assert [c.source.read_bytes() for c in own] == [c.source.read_bytes() for c in alone.clips]  # type: ignore[union-attr]


def test_an_archive_stands_for_its_language(tmp_path: Path) -> None:
    folders = languages(tmp_path, ja="ja", ko="ko")
    with tarfile.open(tmp_path / "ko.tar.gz", "w:gz") as tar:
        tar.add(folders[1], "cv-corpus-27.0-2026-09-09/ko")
    assert counts(several(tmp_path, str(tmp_path / "ko.tar.gz"), folders[0])) == {
        split: 2 * number for split, number in counts(reading(Path(folders[0]))).items()
    }


@pytest.mark.parametrize(
    ("locale", "code"),
    [("sv-SE", "sv"), ("zh-CN", "zh"), ("zh-HK", "zh"), ("nn-NO", "nn"), ("pa-IN", "pa"), ("yue", "yue")],
)
def test_common_voices_codes_become_whispers(tmp_path: Path, locale: str, code: str) -> None:
    (folder,) = languages(tmp_path, **{locale: locale})
    assert {clip.language for clip in several(tmp_path, folder).clips} == {code}


@pytest.mark.parametrize("locale", ["sah", "ga-IE", "ckb"])
def test_a_language_that_whisper_lacks_is_named_with_its_remedy(tmp_path: Path, locale: str) -> None:
    (folder,) = languages(tmp_path, **{locale: locale})
    with pytest.raises(DataError, match=f"the language of {folder}: '{locale}' is no language of Whisper's.*leave"):
        several(tmp_path, folder)


def test_a_list_that_is_no_list_of_languages_is_refused(tmp_path: Path) -> None:
    folders = languages(tmp_path, ja="ja", ko="ko")
    with pytest.raises(DataError, match="holds ja, ko; list the folder of each language"):
        several(tmp_path, str(Path(folders[0]).parent))
    with pytest.raises(DataError, match=f"lists the language ja twice; leave out {folders[0]}"):
        several(tmp_path, *folders, folders[0])
    with pytest.raises(DataError, match=r"data\.release is an empty list"):
        several(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        several(tmp_path, str(tmp_path / "nonesuch"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no language folder"):
        several(tmp_path, str(tmp_path / "empty"))


def test_a_locale_in_a_table_is_no_path(tmp_path: Path) -> None:
    (folder,) = languages(tmp_path, ja="ja-/../../x")
    with pytest.raises(DataError, match=r"is of language ja-/\.\./\.\./x"):
        several(tmp_path, folder)
