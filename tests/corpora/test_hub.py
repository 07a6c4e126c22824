import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import kikitori
from recordings import encoded, tone, write_clip, write_csv, write_tar

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import decode
from kikitori.corpora import hub
from kikitori.corpora.types import Corpus
from kikitori.runtime.errors import DataError

SPLITS = {"train": "train", "validation": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write_audiofolder(folder: Path, **columns: list) -> Path:
    """Writes two recordings per split and a metadata.csv, with `columns` added or replaced."""
    for split in SPLITS:
        for i in range(2):
            write_clip(folder / split / f"{i}.wav", hertz=300 + 100 * i + 10 * len(split))
        cells = {"file_name": ["0.wav", "1.wav"], "transcription": [f" {split} 零", ""], "who": ["0", "b"], **columns}
        rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        write_csv(folder / split / "metadata.csv", rows)
    return folder


def write_parquet(folder: Path, audio: Callable[[int], dict | None]) -> Path:
    """Writes a dataset like `push_to_hub`: the bytes of the recordings are in parquet files."""
    features = datasets.Features({"audio": datasets.Audio(), "sentence": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"audio": [audio(i) for i in range(3)], "sentence": ["零", "一", None]})
    folder.mkdir(parents=True)
    for split in SPLITS:
        rows.cast(features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def reading(folder: Path | str, text: str = "transcription", **changes: object) -> Corpus:
    arguments = {"config": None, "revision": None, "splits": SPLITS, "audio_column": "audio", "speaker_column": None}
    return hub.read(str(folder), text_column=text, **{**arguments, **changes})  # type: ignore[arg-type]


def message(folder: Path | str, text: str = "transcription", **changes: object) -> str:
    with pytest.raises(DataError) as error:
        reading(folder, text, **changes)
    return str(error.value)


def test_a_folder_of_recordings_is_read_with_its_metadata(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus")
    corpus = reading(folder, speaker_column="who")
    assert [(c.name, c.split, c.text, c.speaker) for c in corpus.clips][:3] == [
        ("train/000000", "train", "train 零", "0"),
        ("train/000001", "train", "", "b"),
        ("validation/000000", "validation", "validation 零", "0"),
    ]
    assert [c.source() for c in corpus.clips[:2]] == [folder / f"train/{i}.wav" for i in range(2)]  # type: ignore[operator]
    assert corpus.rejects == []


def test_recordings_in_parquet_files_are_read(tmp_path: Path) -> None:
    recordings = [encoded(tone(hertz=300 + 100 * i), "mp3") for i in range(3)]
    folder = write_parquet(tmp_path / "corpus", lambda i: {"bytes": recordings[i], "path": None})
    corpus = reading(folder, "sentence")
    assert corpus.description == "hub, corpus"  # the folder's name, without the path to it
    assert [c.text for c in corpus.clips] == ["零", "一", ""] * 3
    assert [c.source() for c in corpus.clips] == recordings * 3  # type: ignore[operator]
    assert len(decode(corpus.clips[0].source())) == 8_000  # type: ignore[operator]


def test_recordings_in_tar_files_are_read(tmp_path: Path) -> None:
    recording = encoded(tone(), "wav")
    for split in SPLITS:
        members = [(tarfile.TarInfo("0.wav"), recording), (tarfile.TarInfo("0.txt"), "零".encode())]
        (tmp_path / "corpus").mkdir(exist_ok=True)
        write_tar(tmp_path / "corpus" / f"{split}.tar", members, "w")
    corpus = reading(tmp_path / "corpus", "txt", audio_column="wav")
    assert [(c.text, c.source()) for c in corpus.clips] == [("零", recording)] * 3  # type: ignore[operator]


def test_a_row_without_audio_is_one_bad_clip(tmp_path: Path) -> None:
    recording = encoded(tone(), "wav")
    gone = tmp_path / "corpus" / "gone.wav"
    rows = [{"bytes": recording, "path": None}, None, {"bytes": b"", "path": str(gone)}]
    corpus = reading(write_parquet(tmp_path / "corpus", lambda i: rows[i]), "sentence")
    assert [c.source() for c in corpus.clips[:2]] == [recording, b""]  # type: ignore[operator]
    assert corpus.clips[2].source() == gone  # type: ignore[operator]


@pytest.mark.parametrize("place", ["outside.wav", "corpus/link.wav", "corpus/../outside.wav"])
def test_a_file_outside_of_the_dataset_is_never_read(tmp_path: Path, place: str) -> None:
    rows: list[dict | None] = [{"bytes": b"", "path": str(tmp_path / place)}] * 3
    write_parquet(tmp_path / "corpus", lambda i: rows[i])
    write_clip(tmp_path / "outside.wav")
    (tmp_path / "corpus" / "link.wav").symlink_to(tmp_path / "outside.wav")
    with pytest.raises(AudioError, match="names a file outside the dataset"):
        reading(tmp_path / "corpus", "sentence").clips[0].source()  # type: ignore[operator]


@pytest.mark.slow
def test_prepare_leaves_out_a_row_that_names_a_file_outside_of_its_dataset(tmp_path: Path) -> None:
    inside = {"bytes": encoded(tone()), "path": None}
    outside = {"bytes": b"", "path": str(write_clip(tmp_path / "outside.wav"))}
    write_parquet(tmp_path / "corpus", lambda i: outside if i == 1 else inside)
    line = ["data=hub", "data.name=corpus", "data.text_column=sentence", "data.max_reject_rate=1", "hydra.run.dir=run"]
    done = kikitori(
        *("prepare", *line, "data.allow_shared_clips=true"),
        cache=tmp_path,
        HF_HOME=str(tmp_path / "hf"),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    rejects = [json.loads(row) for row in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()]
    found = [(row["name"], row["detail"]) for row in rejects if row["reason"] == "outside the corpus"]
    assert found == [(f"{split}/000001", "names a file outside the dataset") for split in SPLITS]


def test_a_row_that_names_a_pipe_or_a_folder_does_not_block(tmp_path: Path) -> None:
    names = ["pipe.wav", "folder.wav", "pipe.wav"]
    write_parquet(tmp_path / "corpus", lambda i: {"bytes": b"", "path": str(tmp_path / "corpus" / names[i])})
    os.mkfifo(tmp_path / "corpus" / "pipe.wav")
    (tmp_path / "corpus" / "folder.wav").mkdir()
    for clip in reading(tmp_path / "corpus", "sentence").clips:
        with pytest.raises(AudioError, match="missing"):
            decode(clip.source())  # type: ignore[operator]


def test_identity_stays_on_a_second_reading_and_changes_with_the_audio(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus")
    first, second = reading(folder), reading(folder)
    assert [c.identity for c in first.clips] == [c.identity for c in second.clips]
    assert len({c.identity for c in first.clips}) == 6
    write_clip(folder / "train" / "0.wav", hertz=999, seconds=0.7)
    assert reading(folder).clips[0].identity != first.clips[0].identity


def test_splits_are_mapped_to_the_datasets_own_names(tmp_path: Path) -> None:
    corpus = reading(
        write_audiofolder(tmp_path / "c"), splits={"train": "test", "validation": "train", "test": "train"}
    )
    assert [c.text for c in corpus.clips if c.text] == ["test 零", "train 零", "train 零"]


def test_mozillas_former_repository_is_refused_with_the_remedy() -> None:
    error = message("mozilla-foundation/common_voice_11_0", "sentence", config="ja")
    assert "data.name=mozilla-foundation/common_voice_11_0" in error
    assert "data=common_voice data.release=" in error


def test_an_unreachable_dataset_is_named() -> None:
    error = message("nobody-at-all/no-such-dataset", config="ja")
    assert "data.name=nobody-at-all/no-such-dataset, configuration ja, split train cannot be loaded" in error
    assert "HF_TOKEN" in error


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus")
    assert "split nonesuch cannot be loaded" in message(folder, splits={**SPLITS, "test": "nonesuch"})
    corpus = reading(folder, splits={**SPLITS, "test": None})
    assert corpus.absent == {"test": "data.splits.test is null"}
    assert {clip.split for clip in corpus.clips} == {"train", "validation"}


def test_only_the_needed_splits_are_loaded(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus")
    corpus = reading(folder, splits={**SPLITS, "train": "nonesuch"}, needed=["test"])
    assert [clip.name for clip in corpus.clips] == ["test/000000", "test/000001"]


def test_recordings_in_a_folder_that_the_user_names_are_read(tmp_path: Path) -> None:
    outside = {"bytes": b"", "path": str(write_clip(tmp_path / "disk" / "outside.wav"))}
    write_parquet(tmp_path / "corpus", lambda i: outside)
    clip = reading(tmp_path / "corpus", "sentence", other_roots=[str(tmp_path / "disk")]).clips[0]
    assert clip.source() == tmp_path / "disk" / "outside.wav"  # type: ignore[operator]


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus")
    error = message(folder, "sentence", speaker_column="client_id")
    assert "no column client_id or sentence; it has: audio, transcription, who" in error
    assert "data.text_column" in error


def test_a_column_without_text_or_audio_is_named(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus", label=[1, 2])
    assert "data.text_column=label of" in message(folder, "label")
    assert "holds int, not text" in message(folder, "label")
    assert "data.audio_column=label of" in message(folder, audio_column="label")


def test_speaker_zero_is_a_speaker(tmp_path: Path) -> None:
    corpus = reading(write_audiofolder(tmp_path / "corpus", label=[0, 1]), speaker_column="label")
    assert [c.speaker for c in corpus.clips[:2]] == ["0", "1"]


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)


@pytest.mark.parametrize("column", ["sentence", "speaker"])
def test_texts_and_speakers_are_not_opened_as_images(
    tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_connections(monkeypatch)
    elsewhere = {"bytes": None, "path": "http://127.0.0.1:9/x.png"}
    values = {"audio": [elsewhere], "sentence": ["零"], "speaker": ["a"], column: [elsewhere]}
    kinds = dict.fromkeys(values, datasets.Value("string")) | {"audio": datasets.Audio(), column: datasets.Image()}
    table = pa.table(values).cast(datasets.Features(kinds).arrow_schema)
    (tmp_path / "own").mkdir()
    pq.write_table(table, tmp_path / "own" / "train.parquet")
    splits = {"train": "train", "validation": None, "test": None}
    if column == "sentence":
        assert "holds dict, not text" in message(tmp_path / "own", "sentence", splits=splits)
    else:
        assert reading(tmp_path / "own", "sentence", splits=splits, speaker_column="speaker").clips[0].text == "零"


@pytest.mark.parametrize(
    "setting",
    [
        "data_files: http://127.0.0.1:9/x.csv",
        "data_files: reference::http://127.0.0.1:9/x",
        "data_files: /etc/*",
        "data_files: ../outside.csv",
        "data_files: link.csv",
        "data_dir: /etc",
        "data_dir: ..",
        "data_files: hf://datasets/other/data.csv",
        "data_files: zip://x.csv::../outside.zip",
    ],
)
def test_a_readme_names_no_files_outside_of_its_dataset(
    tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_connections(monkeypatch)
    write_csv(tmp_path / "outside.csv", [{"file_name": "0.wav", "transcription": "secret"}])
    write_clip(tmp_path / "own" / "0.wav")
    (tmp_path / "own" / "link.csv").symlink_to(tmp_path / "outside.csv")
    readme = f"---\nconfigs:\n- config_name: default\n  {setting}\n---\n"
    (tmp_path / "own" / "README.md").write_text(readme)
    assert "is not a file of the dataset" in message(tmp_path / "own")


@pytest.mark.parametrize(
    "pattern", ["hf://datasets/owner/data/x::http://127.0.0.1:9/x", "hf://datasets/owner/other/x", "zip://x::hf://x"]
)
def test_a_readme_on_the_hub_names_no_other_files(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_connections(monkeypatch)
    with hub._own_files_only("owner/data", []), pytest.raises(DataError, match="is not a file of the dataset"):
        datasets.data_files.resolve_pattern(pattern, "hf://datasets/owner/data@main")


def test_each_clip_has_the_language_of_its_row(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus", lang=["Japanese", "sv-SE"])
    assert [clip.language for clip in reading(folder, language_column="lang").clips] == ["ja", "sv"] * 3
    assert {clip.language for clip in reading(folder).clips} == {None}


def test_a_row_without_a_language_of_whispers_is_named(tmp_path: Path) -> None:
    folder = write_audiofolder(tmp_path / "corpus", lang=["ja", "sah"])
    assert f"{folder}, row 2 of train: lang: 'sah' is no language" in message(folder, language_column="lang")
    assert "has no column spoken" in message(folder, language_column="spoken")
