import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import write_clip, write_csv, write_tsv

from kikitori.corpora import manifest
from kikitori.corpora.manifest import Columns
from kikitori.corpora.types import Corpus
from kikitori.runtime.errors import DataError

ROWS = [
    {"path": "a.wav", "text": "一", "split": "train", "speaker": "x"},
    {"path": "sub/b.wav", "text": "二", "split": "validation", "speaker": "y"},
    {"path": "c.wav", "text": "三", "split": "test", "speaker": ""},
]


def reading(table: Path | Mapping[str, str], speaker: str | None = None, **columns: str | None) -> Corpus:
    return manifest.read(table if isinstance(table, Mapping) else str(table), Columns(speaker=speaker, **columns))  # type: ignore[arg-type]


def message(table: Path | Mapping[str, str], speaker: str | None = None, **columns: str | None) -> str:
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
    write_clip(tmp_path / "a.wav")
    corpus = reading(write_csv(tmp_path / "list" / "all.csv", [ROWS[0] | {"path": path}]))
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


def write_encoded(table: Path, encoding: str, rows: list[dict]) -> Path:
    write(table, rows)
    table.write_bytes(table.read_text(encoding="utf-8").encode(encoding))
    return table


JAPANESE = [row | {"text": f"今日は{row['text']}です"} for row in ROWS]
GERMAN = [row | {"text": f"Übung {i}", "speaker": "Jörg"} for i, row in enumerate(ROWS)]
KOREAN = [row | {"text": f"안녕하세요 {i}"} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "rows", "looks_like"),
    [
        ("cp932", JAPANESE, "Shift_JIS"),
        ("euc_jp", JAPANESE, "EUC-JP"),
        ("utf-16", JAPANESE, "UTF-16"),
        ("utf-16-le", JAPANESE, "UTF-16"),
        ("utf-16-be", JAPANESE, "UTF-16"),
        ("cp1252", GERMAN, "Windows-1252"),
        ("cp949", KOREAN, "an older encoding"),
    ],
)
def test_a_list_in_another_encoding_is_refused_with_the_remedy(
    tmp_path: Path, name: str, encoding: str, rows: list[dict], looks_like: str
) -> None:
    error = message(write_encoded(tmp_path / name, encoding, rows))
    assert f"{name} is not UTF-8; it looks like {looks_like}" in error
    assert error.endswith("Save it again as UTF-8 (in Excel: 'CSV UTF-8')")


@pytest.mark.parametrize(
    ("start", "looks_like"), [(b"PK\x03\x04\0\0", "a spreadsheet (.xlsx, .ods)"), (b"\x1f\x8b\x08\0", "gzip")]
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, start: bytes, looks_like: str) -> None:
    (tmp_path / "all.csv").write_bytes(start + bytes(100))
    assert f"it looks like {looks_like}. Save it" in message(tmp_path / "all.csv")


def test_a_message_names_some_of_many_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "all.jsonl", [{f"{i}.wav": "text" for i in range(1000)}])
    error = message(tmp_path / "all.jsonl")
    assert error.endswith("data.end_column, data.language_column. One object of JSON is one row")
    assert "it has: 0.wav, 1.wav, " in error
    assert "19.wav and 980 more. " in error


def test_a_header_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = [{"音声": row["path"], "文": "a", "split": row["split"]} for row in ROWS]
    assert "it looks like" in message(write_encoded(tmp_path / "all.csv", "cp932", rows), path="音声", text="文")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_is_the_one_of_its_header(tmp_path: Path, separator: str) -> None:
    lines = [["path", "text", "split"], ["a.wav", "一; 二, 三", "train"], ["b.wav", '"x"', "test"]]
    with (tmp_path / "all.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(lines)
    assert [(c.name, c.text, c.split) for c in reading(tmp_path / "all.csv").clips] == [tuple(row) for row in lines[1:]]


def test_empty_rows_that_a_spreadsheet_appends_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,text,split\na.wav,one,train\n,,\n\n,,\n")
    (tmp_path / "all.tsv").write_text("path\ttext\na.wav\tone\n\t\n")
    for name in ("all.csv", "all.tsv"):
        corpus = reading(tmp_path / name)
        assert ([c.name for c in corpus.clips], corpus.rejects) == (["a.wav"], [])


def test_spaces_after_the_separator_are_no_part_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text('path, text, split\na.wav, "one, two", train\n')
    assert [(c.name, c.text, c.split) for c in reading(tmp_path / "all.csv").clips] == [("a.wav", "one, two", "train")]


@pytest.mark.parametrize("name", ["all.json", "all.jsonl"])
@pytest.mark.parametrize("array", [False, True])
def test_json_may_be_nested_and_one_array(tmp_path: Path, name: str, array: bool) -> None:
    rows = [{"audio": {"path": r["path"], "rate": 1}, "text": r["text"], "info": {"split": r["split"]}} for r in ROWS]
    table = tmp_path / name
    if array:
        table.write_text("\n" + json.dumps(rows, indent=1), encoding="utf-8-sig")
    else:
        write_jsonl(table, rows)
    corpus = reading(table, path="audio.path", split="info.split")
    assert [(c.name, c.split) for c in corpus.clips] == [(r["path"], r["split"]) for r in ROWS]
    assert "it has: audio.path, audio.rate, text, info.split" in message(table)


def test_a_column_whose_name_has_a_dot_is_not_nested(tmp_path: Path) -> None:
    rows = [{"audio.path": r["path"], "text": r["text"], "split": r["split"]} for r in ROWS]
    assert len(reading(write_csv(tmp_path / "all.csv", rows), path="audio.path").clips) == 3


def test_a_list_without_a_split_column_has_only_training_clips(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "all.csv", [{"path": r["path"], "text": r["text"]} for r in ROWS])
    for split in ("split", None):
        corpus = reading(table, split=split)
        assert [c.split for c in corpus.clips] == ["train"] * 3
        assert set(corpus.absent) == {"validation", "test"}
        assert f"{table} has no column split, only path, text. Name it with data" in corpus.absent["test"]
    assert "has no column part; it has: path, text" in message(table, split="part")
    assert [c.split for c in reading(write_csv(tmp_path / "b.csv", ROWS), split=None).clips] == ["train"] * 3


def test_rows_without_a_split_are_counted(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1] | {"split": " "}, ROWS[2] | {"split": " TEST "}]
    for name in ("all.csv", "all.jsonl"):
        corpus = reading(write(tmp_path / name, rows))
        assert [c.split for c in corpus.clips] == ["train", "test"]
        assert [(r.name, r.reason) for r in corpus.rejects] == [("sub/b.wav", "in no split")]


@pytest.mark.parametrize("first", [{"path": "z.wav", "text": "零"}, {"path": "z.wav"}])
def test_a_first_row_of_json_that_lacks_a_column_does_not_speak_for_the_others(tmp_path: Path, first: dict) -> None:
    """Otherwise the clips of all splits would be trained on."""
    corpus = reading(write_jsonl(tmp_path / "all.jsonl", [first, *ROWS]), "speaker")
    assert [clip.split for clip in corpus.clips] == ["train", "validation", "test"]
    assert [(reject.name, reject.reason) for reject in corpus.rejects] == [("z.wav", "in no split")]
    assert corpus.absent == {}


def test_only_the_needed_splits_are_read(tmp_path: Path) -> None:
    tables = {"test": str(write_csv(tmp_path / "c.csv", ROWS[2:])), "dev": "nowhere.csv"}
    corpus = manifest.read(tables, Columns(), ["test"])
    assert [c.name for c in corpus.clips] == ["c.wav"]
    assert corpus.absent == {"train": "data.manifest names no list for it"}
    whole = manifest.read(str(write_csv(tmp_path / "all.csv", ROWS)), Columns(), ["test"])
    assert [c.name for c in whole.clips] == ["c.wav"]
    with pytest.raises(DataError, match=r"data\.manifest: split 'eval' is not one of"):
        manifest.read({"eval": "a.csv"}, Columns())


PARTS = {"start": "from", "end": "to"}


@pytest.mark.parametrize("name", ["all.csv", "all.jsonl"])
def test_a_row_may_be_a_part_of_a_recording(tmp_path: Path, name: str) -> None:
    bounds = [("0", "1.5"), ("1.5", ""), ("", "2"), ("", "")]
    rows = [ROWS[0] | {"from": start, "to": end} for start, end in bounds]
    corpus = reading(write(tmp_path / name, rows), **PARTS)
    assert [c.part for c in corpus.clips] == [(0, 1.5), (1.5, None), (0, 2), None]
    assert [c.duration_s for c in corpus.clips] == [1.5, None, 2, None]
    assert "no column von; it has" in message(tmp_path / name, start="von")


@pytest.mark.parametrize(
    ("start", "end", "detail"),
    [
        ("2", "1", "from 2 to 1 s"),
        ("1", "1", "from 1 to 1 s"),
        ("-1", "", "from -1 s"),
        ("nan", "2", "from nan to 2 s"),
        ("0", "inf", "from 0 to inf s"),
        ("1:30", "", "from is not a number"),
    ],
)
def test_impossible_bounds_are_one_reject(tmp_path: Path, start: str, end: str, detail: str) -> None:
    rows = [ROWS[0] | {"from": "0", "to": "1"}, ROWS[1] | {"from": start, "to": end}]
    corpus = reading(write_csv(tmp_path / "all.csv", rows), **PARTS)
    assert len(corpus.clips) == 1
    assert [(r.reason, r.detail) for r in corpus.rejects] == [("malformed row", f"all.csv line 3: {detail}")]


CELLS = st.text(st.characters(codec="utf-8"), max_size=6)
ROW = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["a.wav", "sub/か\u3099.wav", "../b.wav", "/nowhere/a.wav", ""]),
        "text": CELLS,
        "split": st.sampled_from(["train", "dev", "Validation", "test", " ", ""]),
        "何か": st.just("x"),
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1),
    order=st.permutations(["path", "text", "split", "何か"]),
    name=st.sampled_from(["all.csv", "all.tsv", "all.jsonl", "all.json"]),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_every_row_of_any_list_is_a_clip_or_a_reject(
    tmp_path: Path, rows: list[dict], order: list[str], name: str, separator: str, encoding: str, newline: str
) -> None:
    if name == "all.tsv":  # which has no quoting
        rows = [row | {"text": re.sub(r"\s", " ", row["text"])} for row in rows]
    rows = [{key: row[key] for key in order} for row in rows]
    lines = io.StringIO()
    if name in ("all.jsonl", "all.json"):
        lines.writelines(json.dumps(row, ensure_ascii=False) + newline for row in rows)
    elif name == "all.tsv":
        lines.writelines("\t".join(cells) + newline for cells in [order, *(row.values() for row in rows)])
    else:
        # csv does not quote a carriage return, if it is not part of the line's end.
        quoting = csv.QUOTE_ALL if any("\r" in row["text"] for row in rows) else csv.QUOTE_MINIMAL
        writer = csv.writer(lines, delimiter=separator, lineterminator=newline, quoting=quoting)
        writer.writerows([order, *(row.values() for row in rows)])
    (tmp_path / name).write_bytes(lines.getvalue().encode(encoding))
    corpus = reading(tmp_path / name)
    assert len(corpus.clips) + len(corpus.rejects) == len(rows)
    usable = [row for row in rows if row["split"].strip() and row["path"] in ("a.wav", "sub/か\u3099.wav")]
    assert [(c.name, c.text) for c in corpus.clips] == [(row["path"], row["text"].strip()) for row in usable]
    assert Counter(reject.reason for reject in corpus.rejects) == Counter(
        "in no split" if not row["split"].strip() else "missing" if row["path"] else "malformed row"
        for row in rows
        if row not in usable
    )


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
    assert "line 2: split 'two' is not one of" in message(tmp_path / "all.csv")
    assert "must be quoted" in message(tmp_path / "all.csv")


def test_a_missing_table_a_folder_and_a_table_of_another_kind_are_named(tmp_path: Path) -> None:
    assert f"data.manifest: {tmp_path / 'all.csv'} does not exist" in message(tmp_path / "all.csv")
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.csv").write_text("path,text\n")
    assert f"data.manifest: {tmp_path} is a folder; give the list in it: a.jsonl, b.csv" in message(tmp_path)
    (tmp_path / "all.xlsx").write_bytes(b"PK")
    assert "must end in .csv, .tsv, .jsonl, .json; save a spreadsheet as CSV UTF-8" in message(tmp_path / "all.xlsx")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    assert "is a data folder of Kaldi; make a .csv of its wav.scp, text and segments" in message(tmp_path)


@pytest.mark.parametrize("line", ['{"path": "a.wav"', "[1]", "nul", "9" * 5000, "[" * 100_000])
def test_a_line_that_is_not_a_json_object_is_reported_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "all.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    assert "all.jsonl line 3 is not" in message(tmp_path / "all.jsonl")


def test_a_quotation_mark_that_is_never_closed_is_reported_with_the_table(tmp_path: Path) -> None:
    for rows in (2, 20_000):  # up to the end of the table, and over csv's size limit of a cell
        (tmp_path / "all.csv").write_text('split,path,text\ntrain,a.wav,"one\n' + "train,b.wav,two\n" * rows)
        assert "all.csv cannot be read beyond line" in message(tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("cell", "code"), [("ja", "ja"), ("Japanese", "ja"), ("zh-TW", "zh"), ("kr", "ko"), (" EN ", "en"), ("cmn", "zh")]
)
def test_each_clip_has_the_language_of_its_row(tmp_path: Path, cell: str, code: str) -> None:
    rows = [{**row, "spoken": cell} for row in ROWS]
    assert {clip.language for clip in reading(write(tmp_path / "a.csv", rows), language="spoken").clips} == {code}
    assert {clip.language for clip in reading(tmp_path / "a.csv").clips} == {None}


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "a.jsonl line 2: spoken is empty; write the clip's language there"),
        (None, "a.jsonl line 2: spoken is empty; write the clip's language there"),
        ("xx", "a.jsonl line 2: spoken: 'xx' is no language of Whisper's"),
        ("ain", "a related language that Whisper has"),
        ("Japanish", "or ja (japanese)"),
        (7, "a.jsonl line 2: spoken: '7' is no language"),
    ],
)
def test_a_row_without_a_language_of_whispers_is_named(tmp_path: Path, cell: object, problem: str) -> None:
    rows = [{**row, "spoken": "ja" if number != 1 else cell} for number, row in enumerate(ROWS)]
    assert problem in message(write_jsonl(tmp_path / "a.jsonl", rows), language="spoken")


def test_a_missing_column_of_languages_is_named_with_its_setting(tmp_path: Path) -> None:
    assert "has no column spoken; it has: path, text, split, speaker. Name yours with" in (
        found := message(write(tmp_path / "a.csv", ROWS), language="spoken")
    )
    assert "data.language_column" in found
