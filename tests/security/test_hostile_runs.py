"""Run folders of strangers: whatever they hold, the runs beside them are compared, and nothing outside is touched."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_runs import good_run, mutated_run, replace
from watching import state, within

from kikitori.compare import formats
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.compare.page import write_page
from kikitori.runs.record import record
from kikitori.runs.resume import expand_resume, start_folder_of
from kikitori.runtime.errors import KikitoriError
from kikitori.runtime.paths import check_run_folder

# Seconds in which a comparison of two small runs must end.
PATIENCE_S = 20


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nothing may touch."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    before = state(folder)
    yield folder
    assert state(folder) == before
    assert not list(tmp_path.rglob("PWN_*"))


def compared(folder: Path, page: bool) -> list[str]:
    """The names of the runs in the tables, all of which are written in every format."""
    tables, failures = build_leaderboards([str(folder)])
    for write in (formats.markdown, formats.as_csv, formats.as_json):
        write(tables, failures)
    formats.print_tables(tables, failures)
    if page:
        write_page(folder.parent / "page.html", tables, failures, "kikitori compare")
    return [run.name for table in tables for run in table.runs]


def resume(folder: Path) -> None:
    """Goes on with the run in a folder as far as that does not need its data: reads, compares and writes its record."""
    words = [f"resume={folder}"]
    with suppress(KikitoriError, OSError):  # both are shown without a traceback
        start_folder_of(words)
        expand_resume("train", words)
        check_run_folder(folder, "hydra.run.dir")
        config = {"resume": True, "trainer": {"max_steps": 20, "max_epochs": None}, "data": {"global_batch_size": 8}}
        with record({}, "train", {**config, "callbacks": {}, "resume_accept": ["."]}, folder):
            pass


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_a_mutated_run_folder_affects_no_other(tmp_path: Path, victim: Path, count: int) -> None:
    for number in range(count):
        place, rng = tmp_path / "runs", random.Random(number)
        good_run(place / "good")
        bad = mutated_run(place / "sweep" / rng.choice(("bad", "0-lr=1", "1²2")), rng)
        try:
            with within(PATIENCE_S):
                assert "good" in compared(place, page=number % 4 == 0)
                resume(bad)
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {count}: {error!r}") from error
        shutil.rmtree(place)


def bad_results(folder: Path, **changes: Any) -> Path:
    good_run(folder)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    for key, value in changes.items():
        node = results
        *parents, last = key.split("__")
        for part in parents:
            node = node[part]
        node[last] = value
    path.write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"git": 1},
        {"scores__after": 1},
        {"scores__after__validation__cer": "x"},
        {"scores__after__validation__cer": 10**400},
        {"overrides": 5},
        {"command": 1},
        {"versions": "x"},
        {"error": ["\ud800"]},
        {"history": [{"step": "<a href='https://evil.example'>x</a>", "val/cer": 0.1}]},
        {"data__splits__validation__store": "../../evil.arrow"},
        {"data__splits__validation__store": "/abs/evil.arrow"},
        {"scores": {"../../../etc/x": {"validation": {"cer": 0.5}}}},
        {"scoring": {"language": "Klingon"}},
        {"config": {str(key): key for key in range(3000)}},
        {"overrides": ["seed=1"] * 2000},
        {"options": ["--config-dir", "a" * 20_000]},
    ],
)
def test_what_no_run_records_makes_one_run_unreadable(tmp_path: Path, victim: Path, changes: dict[str, Any]) -> None:
    good_run(tmp_path / "runs" / "good")
    bad_results(tmp_path / "runs" / "bad", **changes)
    tables, failures = build_leaderboards([str(tmp_path / "runs")])
    assert [run.name for table in tables for run in table.runs] == ["good"]
    assert [(run.name, run.status) for run in failures] == [("bad", "unreadable")]


@pytest.mark.parametrize("changes", [{"cost": None}, {"git": None}, {"versions": None}, {"error": "\ud800"}])
def test_what_an_earlier_version_may_lack_is_absent(tmp_path: Path, changes: dict[str, Any]) -> None:
    bad_results(tmp_path / "runs" / "a", **changes)
    assert compared(tmp_path / "runs", page=True) == ["a"]


@pytest.mark.parametrize("kind", ["pipe", "device", "link", "holes", "folder"])
@pytest.mark.parametrize(
    "name", ["results.json", "predictions/validation_after.jsonl", ".lock", ".hydra/overrides.yaml", "../sweep.json"]
)
def test_only_regular_files_of_limited_size_are_read(tmp_path: Path, name: str, kind: str) -> None:
    good_run(tmp_path / "runs" / "good")
    bad = bad_results(tmp_path / "runs" / "sweep" / "bad", overrides=None, status="running")
    replace(bad / name, kind)
    with within(PATIENCE_S):
        assert "good" in compared(tmp_path / "runs", page=True)
        resume(bad)


def test_a_transcript_of_any_length_is_compared_in_time(tmp_path: Path) -> None:
    good_run(tmp_path / "runs" / "good")
    path = good_run(tmp_path / "runs" / "long", 1) / "predictions" / "validation_after.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for length in (90_000, 400_000):
        texts = {"reference": "アイ" * (length // 2), "hypothesis": "アウエ" * (length // 3)}
        path.write_text("".join(json.dumps(row | texts) + "\n" for row in rows))
        start = time.monotonic()
        assert set(compared(tmp_path / "runs", page=True)) == {"good", "long"}
        assert time.monotonic() - start < 10


def test_a_trial_in_sweep_json_lies_in_its_sweep(tmp_path: Path) -> None:
    good_run(tmp_path / "private")
    good_run(tmp_path / "sweep" / "a")
    for folder in ("../private", str(tmp_path / "private")):
        trials = [{"folder": folder}, {"folder": "a", "log": "../private/train.log"}]
        trials = [{"number": number, "overrides": [], "swept": {}, **trial} for number, trial in enumerate(trials)]
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"trials": trials}))
        tables, failures = build_leaderboards([str(tmp_path / "sweep")])
        assert [run.name for table in tables for run in table.runs] + failures == ["a"]


def test_folders_of_any_depth_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_run(tmp_path / "runs" / "good")
    monkeypatch.chdir(tmp_path / "runs")
    for _ in range(1500):
        os.mkdir("deep")
        os.chdir("deep")
    os.chdir(tmp_path)
    try:
        assert compared(tmp_path / "runs", page=False) == ["good"]
    finally:
        subprocess.run(["rm", "-r", "runs/deep"], check=True)  # too deep for pytest


def test_a_run_that_cannot_be_looked_at_is_unreadable(tmp_path: Path) -> None:
    good_run(tmp_path / "sweep" / "a")
    trials = [{"folder": "b", "log": "/".join(["x" * 250] * 20)}, {"folder": "a"}]
    trials = [{"number": number, "overrides": [], "swept": {}, **trial} for number, trial in enumerate(trials)]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"trials": trials}))
    tables, failures = build_leaderboards([str(tmp_path / "sweep")])
    assert [run.name for table in tables for run in table.runs] == ["a"]
    assert [(run.name, run.status, run.reason) for run in failures] == [
        ("b", "unreadable", "cannot be read (File name too long)")
    ]


def test_a_run_with_too_many_transcripts_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_run(tmp_path / "runs" / "good")
    for most, count in ((6, 6), (5, 0)):
        monkeypatch.setattr("kikitori.runs.results.MAX_TRANSCRIPTS", most)
        ((run, *_),) = [table.runs for table in build_leaderboards([str(tmp_path / "runs")])[0]]
        assert len(run.predictions("validation")) == count


LINKED = ["train.log", "results.json", ".results.json.partial", "results.md", "metrics.csv", "model/README.md"]
LINKED += ["model/config.json", ".hydra/config.yaml", "predictions", "checkpoints", "wandb", "tensorboard/version_0"]
LINKED += ["wandb/run-1/logs", "wandb/run-1/logs/debug.log"]


@pytest.mark.parametrize("name", LINKED)
def test_a_run_folder_with_a_link_out_of_it_is_not_written_into(tmp_path: Path, victim: Path, name: str) -> None:
    folder = good_run(tmp_path / "run")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(victim / "thesis.txt" if path.suffix else victim)
    with pytest.raises(KikitoriError, match=r"is a link out of this folder; to go on .* cp -rL"):
        check_run_folder(folder, "hydra.run.dir")


def test_a_second_name_of_a_file_is_not_written_through(tmp_path: Path, victim: Path) -> None:
    folder = good_run(tmp_path / "run")
    (folder / "train.log").unlink()
    os.link(victim / "thesis.txt", folder / "train.log")
    with pytest.raises(KikitoriError, match=r"train\.log has a second name"):
        check_run_folder(folder, "hydra.run.dir")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_run_folder_of_another_user_is_not_written_into(tmp_path: Path) -> None:
    folder = good_run(tmp_path / "run")
    for path in (folder / "train.log", folder):
        os.chown(path, 12345, -1)
        with pytest.raises(KikitoriError, match="belongs to another user"):
            check_run_folder(folder, "hydra.run.dir")
        os.chown(path, 0, -1)


def test_a_run_folder_of_any_depth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "/".join("x" * 40)).mkdir(parents=True)
    with pytest.raises(KikitoriError, match="lies below more than 32 folders"):
        check_run_folder(tmp_path / "run", "hydra.run.dir")


def test_a_run_folder_as_kikitori_leaves_it_is_written_into(tmp_path: Path) -> None:
    folder = good_run(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-1.ckpt").write_text("x")
    for name in ("last.ckpt", ".last.ckpt.link.partial"):  # the second one after a kill
        os.link(folder / "checkpoints" / "step-1.ckpt", folder / "checkpoints" / name)
    (folder / "wandb" / "run-1").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("run-1")
    (folder / "wandb" / "run-1" / "logs").mkdir()
    (folder / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "cache" / "core-debug.log")
    check_run_folder(folder, "hydra.run.dir")
    check_run_folder(tmp_path / "new", "hydra.run.dir")
