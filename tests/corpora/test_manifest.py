import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import write_clip, write_csv, write_tsv

from kikitori.corpora import manifest
from kikitori.corpora.types import Corpus
from kikitori.runtime.errors import DataError

ROWS = [
    {"path": "a.wav", "text": "一", "split": "train", "speaker": "x"},
    {"path": "sub/b.wav", "text": "二", "split": "validation", "speaker": "y"},
    {"path": "c.wav", "text": "三", "split": "test", "speaker": ""},
]


def reading(table: Path | Mapping[str, str], speaker: str | None = None, **columns: str) -> Corpus:
    names = {"path": "path", "text": "text", "split": "split", **columns}
    return manifest.read(table if isinstance(table, Mapping) else str(table), *names.values(), speaker)


def message(table: Path | Mapping[str, str], speaker: str | None = None, **columns: str) -> str:
    with pytest.raises(DataError) as error:
        reading(table, speaker, **columns)
    return str(error.value)


def write_jsonl(table: Path, rows: list[dict]) -> Path:
    table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return table


def write(table: Path, rows: list[dict]) -> Path:
    """Writes the rows in the format that the table's suffix names."""
    if table.suffix == ".tsv":
        return write_tsv(table, rows, " ".join(rows[0]))
    return (write_jsonl if table.suffix == ".jsonl" else write_csv)(table, rows)


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.jsonl", "ALL.CSV"])
def test_the_three_kinds_of_table_give_the_same_corpus(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / "sub" / "b.wav")
    corpus = reading(write(tmp_path / name, ROWS), "speaker")
    assert [(c.name, c.split, c.text, c.speaker) for c in corpus.clips] == [
        ("a.wav", "train", "一", "x"),
        ("sub/b.wav", "validation", "二", "y"),
        ("c.wav", "test", "三", None),
    ]
    assert [c.source for c in corpus.clips] == [tmp_path / row["path"] for row in ROWS]
    assert [c.identity == "missing" for c in corpus.clips] == [True, False, True]
    assert (corpus.rejects, corpus.description) == ([], f"manifest, {name}")


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    rows = [{"text": "not this", "wav": r["path"], "said": r["text"], "part": r["split"]} for r in ROWS]
    corpus = reading(write_csv(tmp_path / "all.csv", rows), path="wav", text="said", split="part")
    assert [(c.name, c.text) for c in corpus.clips] == [("a.wav", "一"), ("sub/b.wav", "二"), ("c.wav", "三")]


def test_one_table_per_split_needs_no_split_column(tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "text": "一"}]
    names = {"train": "one/a.csv", "validation": "two/b.csv", "test": "two/c.tsv"}
    tables = {split: str(write(tmp_path / name, rows)) for split, name in names.items()}
    corpus = reading({**tables, "nothing": ""})
    assert [(c.split, c.source) for c in corpus.clips] == [
        (split, (tmp_path / name).parent / "a.wav") for split, name in names.items()
    ]


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation"])
def test_the_validation_split_may_have_any_of_its_names(tmp_path: Path, name: str) -> None:
    corpus = reading(write_csv(tmp_path / "all.csv", [{"path": "a.wav", "text": "一", "split": name}]))
    assert [c.split for c in corpus.clips] == ["validation"]


def test_quoted_text_may_hold_commas_quotation_marks_and_lines(tmp_path: Path) -> None:
    text = '一, "二"\n三'
    corpus = reading(write_csv(tmp_path / "all.csv", [ROWS[0] | {"text": text}, ROWS[1]]))
    assert [c.text for c in corpus.clips] == [text, "二"]


def test_a_tsv_has_no_quoting(tmp_path: Path) -> None:
    corpus = reading(write(tmp_path / "all.tsv", [ROWS[0] | {"text": '"と言った'}, ROWS[1]]))
    assert [c.text for c in corpus.clips] == ['"と言った', "二"]


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.jsonl"])
def test_a_row_in_another_encoding_is_one_reject_between_good_neighbours(tmp_path: Path, name: str) -> None:
    table = write(tmp_path / name, [ROWS[0], ROWS[1] | {"text": "déjà"}, ROWS[2]])
    table.write_bytes(table.read_bytes().replace("déjà".encode(), "déjà".encode("latin-1")))
    corpus = reading(table)
    assert [c.text for c in corpus.clips] == ["一", "三"]
    assert [(r.reason, r.split) for r in corpus.rejects] == [("not UTF-8", "validation")]


@pytest.mark.parametrize("field", ["path", "text"])
def test_half_a_character_in_json_is_a_reject(tmp_path: Path, field: str) -> None:
    (tmp_path / "all.jsonl").write_text(json.dumps(ROWS[0] | {field: "\ud83d"}) + "\n")
    assert [r.reason for r in reading(tmp_path / "all.jsonl").rejects] == ["not UTF-8"]


@pytest.mark.parametrize("bad", [{"text": None}, {"text": 3}, {"path": ["a.wav"]}, {"path": ""}, {"path": "a\0.wav"}])
def test_a_row_without_text_or_path_is_one_reject(tmp_path: Path, bad: dict) -> None:
    corpus = reading(write_jsonl(tmp_path / "all.jsonl", [ROWS[0], ROWS[1] | bad, ROWS[2]]))
    assert [c.text for c in corpus.clips] == ["一", "三"]
    assert [r.reason for r in corpus.rejects] == ["malformed row"]


@pytest.mark.parametrize("path", ["../a.wav", "/etc/hostname"])
def test_a_path_outside_of_the_tables_folder_is_a_reject(tmp_path: Path, path: str) -> None:
    corpus = reading(write_csv(tmp_path / "all.csv", [ROWS[0] | {"path": path}]))
    assert [(r.name, r.reason) for r in corpus.rejects] == [(path, "outside the corpus")]


def test_speaker_zero_is_a_speaker(tmp_path: Path) -> None:
    rows = [row | {"speaker": number} for number, row in enumerate(ROWS)]
    assert [c.speaker for c in reading(write_jsonl(tmp_path / "all.jsonl", rows), "speaker").clips] == ["0", "1", "2"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_text_survives_csv_and_json(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"path": f"{i}.wav", "text": text, "split": "train"} for i, text in enumerate(texts)]
    for name in ("all.csv", "all.jsonl"):
        corpus = reading(write(tmp_path / name, rows or ROWS[:1]))
        assert [c.text for c in corpus.clips] == [text.strip() for text in texts or ["一"]]


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "all.csv", ROWS)
    error = message(table, path="wav", text="said")
    assert "all.csv has no column wav or said; it has: path, text, split, speaker" in error
    assert "data.path_column" in error
    assert "no column who" in message(table, "who")


def test_an_unknown_split_is_named_with_its_line(tmp_path: Path) -> None:
    assert "all.csv line 3: split 'eval' is not one of train, validation, test" in message(
        write_csv(tmp_path / "all.csv", [ROWS[0], ROWS[1] | {"split": "eval"}])
    )
    (tmp_path / "all.csv").write_text("path,text,split\na.wav,one, two,train\n")
    assert "line 2: split ' two' is not one of" in message(tmp_path / "all.csv")
    assert "must be quoted" in message(tmp_path / "all.csv")


def test_a_missing_table_a_folder_and_a_table_of_another_kind_are_named(tmp_path: Path) -> None:
    assert f"data.manifest: {tmp_path / 'all.csv'} does not exist" in message(tmp_path / "all.csv")
    assert f"data.manifest: {tmp_path} is a folder; give the .csv, .tsv or .jsonl file in it" in message(tmp_path)
    (tmp_path / "all.xlsx").write_bytes(b"PK")
    assert "all.xlsx must end in .csv, .tsv or .jsonl" in message(tmp_path / "all.xlsx")


@pytest.mark.parametrize("line", ['{"path": "a.wav"', "[1]", "nul", "9" * 5000, "[" * 100_000])
def test_a_line_that_is_not_a_json_object_is_reported_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "all.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    assert "all.jsonl line 3 is not" in message(tmp_path / "all.jsonl")


def test_a_quotation_mark_that_is_never_closed_is_reported_with_the_table(tmp_path: Path) -> None:
    for rows in (2, 20_000):  # up to the end of the table, and over csv's size limit of a cell
        (tmp_path / "all.csv").write_text('split,path,text\ntrain,a.wav,"one\n' + "train,b.wav,two\n" * rows)
        assert "all.csv cannot be read beyond line" in message(tmp_path / "all.csv")
