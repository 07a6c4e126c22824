import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_grid, write_run, write_sweep

from kikitori.metrics.normalizer import text_rules
from kikitori.runs.reader import Run, find_runs, varying_keys
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import read_lines, write_lines
from kikitori.runtime.processes import folder_lock


def test_a_run_a_sweep_and_a_glob_name_the_same_runs_once(tmp_path: Path) -> None:
    sweep = write_grid(tmp_path / "sweep")
    first = sweep / "0-model.d_model-32_optim.lr-0.001_seed-0"
    runs = find_runs([str(sweep), str(first), str(sweep / "*seed-0")])
    assert len(runs) == 8
    assert runs[0].name == first.name
    assert {run.status for run in runs} == {"completed"}


def test_runs_are_listed_by_number_not_by_character(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / f"{number}-x")
    assert [run.name for run in find_runs([str(tmp_path)])] == ["1-x", "9-x", "10-x"]


def test_a_folder_with_glob_characters_in_its_name_is_found(tmp_path: Path) -> None:
    write_run(tmp_path / "a[1]")
    assert len(find_runs([str(tmp_path / "a[1]")])) == 1


def test_files_of_a_sweep_among_its_folders_are_skipped(tmp_path: Path) -> None:
    write_run(tmp_path / "0-a")
    write_sweep(tmp_path)
    assert [run.name for run in find_runs([str(path) for path in sorted(tmp_path.iterdir())])] == ["0-a"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("no*match", r"no\*match matches no folder"),
        ("empty", "empty holds no run: there is no results.json"),
        ("a-file", "a-file is a file"),
    ],
)
def test_a_place_without_runs_is_an_error_with_a_remedy(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").touch()
    with pytest.raises(DataError, match=f"{message}.*; give run folders, sweep folders or a quoted glob"):
        find_runs([str(tmp_path / place)])


def test_a_truncated_results_file_makes_the_run_unreadable(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "cut")
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text[: len(text) // 2])
    write_run(tmp_path / "whole")
    cut, whole = find_runs([str(tmp_path)])
    assert (cut.status, whole.status) == ("unreadable", "completed")
    assert "results.json is damaged or cut off" in cut.reason


@pytest.mark.parametrize("text", ["[]", "null", '{"status": "completed"}', '{"status": "completed", "scores": 1}'])
def test_a_results_file_with_other_contents_makes_the_run_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    (run,) = find_runs([str(tmp_path)])
    assert run.status == "unreadable"


def test_a_completed_run_without_scores_is_unreadable(tmp_path: Path) -> None:
    write_run(tmp_path / "run", scores={})
    assert find_runs([str(tmp_path)])[0].reason == "results.json is completed, but lacks scores.after"


def test_a_run_without_an_end_has_the_time_of_its_last_record(tmp_path: Path) -> None:
    write_run(tmp_path / "run", status="running", scores={})
    (run,) = find_runs([str(tmp_path)])
    assert run.status == "running"
    assert run.reason.startswith("killed, or running on another machine: no process here holds its lock (results.json")
    with folder_lock(tmp_path / "run", "hydra.run.dir=run", ConfigError):
        (run,) = find_runs([str(tmp_path)])
    assert run.reason.startswith("still running (results.json was last written")


def test_an_interrupted_run_has_not_failed(tmp_path: Path) -> None:
    write_run(tmp_path, status="failed", error="stopped by SIGINT")
    (run,) = find_runs([str(tmp_path)])
    assert (run.status, run.reason) == ("stopped", "stopped by SIGINT")


def test_the_reason_of_a_killed_trial_comes_from_its_sweep(tmp_path: Path) -> None:
    write_run(tmp_path / "0-a", status="running", scores={})
    write_run(tmp_path / "1-b", status="failed", error="TrainingError: the loss is not finite")
    (tmp_path / "0-a" / "output.log").write_text("oh")
    write_sweep(
        tmp_path,
        {"number": 0, "folder": "0-a", "state": "failed", "reason": "killed by signal 9", "log": "0-a/output.log"},
        {"number": 1, "folder": "1-b", "state": "failed", "reason": "exit status 1", "log": "1-b/output.log"},
        {"number": 2, "folder": "2-c", "state": "waiting", "reason": "", "log": ""},
        {"number": 3, "folder": "3-d", "state": "failed", "reason": "never started", "log": ""},
    )
    runs = find_runs([str(tmp_path)])
    assert [(run.status, run.reason) for run in runs] == [
        ("failed", "killed by signal 9"),
        ("failed", "TrainingError: the loss is not finite"),
        ("waiting", "not started yet"),
        ("failed", "never started"),
    ]
    assert runs[0].log == tmp_path / "0-a" / "output.log"
    # A run that is named by itself still asks its sweep.
    assert find_runs([str(tmp_path / "0-a")])[0].reason == "killed by signal 9"


def test_a_completed_trial_whose_folder_is_gone_left_no_results(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"number": 0, "folder": "0-a", "state": "completed", "reason": "", "log": ""})
    (run,) = find_runs(tmp_path)
    assert (run.status, run.reason) == ("failed", "left no results.json")


def test_a_damaged_sweep_file_hides_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "0-a")
    (tmp_path / "sweep.json").write_text('{"trials": [{"fol')
    assert [run.status for run in find_runs([str(tmp_path)])] == ["completed"]


def test_a_runs_identity_does_not_include_seed_and_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"seed": 0, "callbacks": {"best": {"dirpath": "/a"}}, "sweep": {"resume": "/a"}})
    write_run(tmp_path / "b", config={"seed": 1, "callbacks": {"best": {"dirpath": "/b"}}, "sweep": {"resume": None}})
    write_run(tmp_path / "c", config={"seed": 1, "optim": {"lr": 0.1}})
    a, b, c = find_runs([str(tmp_path)])
    assert a.identity == b.identity != c.identity


def test_the_varying_keys_are_those_on_the_command_lines(tmp_path: Path) -> None:
    tiny = {"model": {"name": "tiny", "layers": 4, "width": 384}}
    base = {"model": {"name": "base", "layers": 6, "width": 512}}
    write_run(tmp_path / "a", config=tiny, overrides=["model=whisper_tiny", "logger=none", "seed=0"])
    write_run(tmp_path / "b", config=base, overrides=["model=whisper_base", "logger=wandb", "seed=1"])
    runs = find_runs([str(tmp_path)])
    assert varying_keys(runs) == ["model"]
    assert [run.choices["model"] for run in runs] == ["whisper_tiny", "whisper_base"]


def test_without_command_lines_the_configurations_are_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"optim": {"lr": 0.1}})
    write_run(tmp_path / "b", config={"optim": {"lr": 0.2}})
    assert varying_keys(find_runs([str(tmp_path)])) == ["optim.lr"]


def test_the_command_of_older_runs_is_read_from_hydras_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    results = json.loads((folder / "results.json").read_text()) | {"options": ["--config-dir", "mine"]}
    del results["overrides"]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- data.limit={train:40,test:12}\n- 'optim.lr=1e-3'\n")
    assert find_runs([str(folder)])[0].command == (
        "kikitori train --config-dir mine 'data.limit={train:40,test:12}' optim.lr=1e-3"
    )


def test_a_trials_link_to_its_study_is_not_a_choice(tmp_path: Path) -> None:
    tie = "+callbacks.pruning={_target_:kikitori.OptunaPruning,study:s,name:n,trial:%d}"
    both = []
    for number in (0, 1):
        config = {"seed": number, "callbacks": {"pruning": {"trial": number}}}
        results = {"command": "train", "config": config, "overrides": ["data=demo", f"seed={number}", tie % number]}
        both.append(Run(tmp_path / str(number), str(number), "completed", results=results))
    assert both[0].identity == both[1].identity
    assert varying_keys(both) == []
    assert both[0].command == "kikitori train data=demo seed=0"


def test_the_configured_model_does_not_describe_an_evaluated_checkpoint(tmp_path: Path) -> None:
    trained = {"model": {"name": "base", "language": "ja"}, "optim": {"lr": 0.1}}
    write_run(tmp_path / "a", config=trained, overrides=["model=whisper_base", "model.name=base", "optim.lr=0.1"])
    stock = {"model": {"name": "small", "language": "ja"}, "checkpoint": None}
    write_run(tmp_path / "b", config=stock, overrides=["model=whisper_small"], command="evaluate")
    scored = {"model": {"name": "small", "language": "en", "task": "transcribe"}, "checkpoint": "outputs/a"}
    given = ["checkpoint=outputs/a", "model=whisper_small", "model.language=en"]
    write_run(tmp_path / "c", config=scored, overrides=given, command="evaluate")
    trained_run, stock_run, scored_run = find_runs([str(tmp_path)])
    assert trained_run.choices["model.name"] == "base"
    assert (stock_run.choices["model"], stock_run.choices["model.name"]) == ("whisper_small", "small")
    assert scored_run.choices["checkpoint"] == "outputs/a"
    assert [key for key in scored_run.choices if key.startswith("model")] == ["model.language", "model.task"]


def test_settings_of_a_training_do_not_describe_an_evaluation(tmp_path: Path) -> None:
    settings = {"trainer": {"max_steps": 4000, "precision": 32}, "data": {"global_batch_size": 16, "release": "a"}}
    write_run(tmp_path / "a", config=settings)
    write_run(tmp_path / "b", config=settings, command="evaluate")
    trained, scored = find_runs([str(tmp_path)])
    assert trained.choices["trainer.max_steps"] == 4000
    assert {"trainer.max_steps", "data.global_batch_size"}.isdisjoint(scored.choices)
    assert (scored.choices["trainer.precision"], scored.choices["data.release"]) == (32, "a")


OLD_RULES = {"normaliser": "nfkc-casefold-nopunct-1", "segmenter": "white space"}


def test_a_run_scored_by_other_rules_is_scored_again_from_its_transcripts(tmp_path: Path) -> None:
    """As early versions scored Chinese with data.language=zh-CN: punctuation as spaces, a sentence as a word."""
    config = {"data": {"language": "zh-CN"}, "model": {"language": "zh"}}
    pair = {"references": ["你好，世界。"], "hypotheses": ["你好世间"]}
    old = write_run(tmp_path / "old", config=config, scoring=OLD_RULES, **pair)
    for path in (old / "predictions").glob("*.jsonl"):
        rows = [row | {"wer_edits": 1, "wer_length": 1, "cer_edits": 3} for row in read_lines(path)]
        write_lines(path, rows)
    (run,) = find_runs(old)
    assert run.text_language == "zh"
    assert run.score("validation") == run.score("test", "wer") == 1 / 4
    (row,) = run.predictions("validation")
    assert (row["cer_edits"], row["wer_edits"], row["wer_length"]) == (1, 1, 4)
    assert run.results["scoring"] == {**text_rules("zh"), "recorded": OLD_RULES}


def test_of_several_languages_each_transcript_is_scored_again_by_the_rules_of_its_own(tmp_path: Path) -> None:
    pair = {"references": ["赤い犬", "빨간 개"], "hypotheses": ["赤い猫", "빨간 고양이"]}
    recorded = {**text_rules("ja", ["ja", "ko"]), "normaliser": "nfkc-casefold-nopunct-1"}
    folder = write_run(tmp_path / "old", scoring=recorded, **pair)
    for path in (folder / "predictions").glob("*.jsonl"):
        rows = [{**row, "language": code} for row, code in zip(read_lines(path), ("ja", "ko"), strict=True)]
        write_lines(path, [row | {"wer_edits": 9, "wer_length": 9} for row in rows])
    (run,) = find_runs(folder)
    assert [(row["wer_edits"], row["wer_length"]) for row in run.predictions("test")] == [(1, 2), (1, 2)]
    assert [run.language_of(row) for row in run.predictions("test")] == ["ja", "ko"]
    assert run.results["scoring"]["segmenter"].endswith("; ko: white space")
    # As texts of Japanese, whose words Sudachi finds without spaces.
    (alone,) = find_runs(write_run(tmp_path / "one", scoring=OLD_RULES, **pair))
    assert alone.language_of({"language": "ko"}) == "ja"
    (damaged,) = find_runs(write_run(tmp_path / "bad", scoring={**recorded, "languages": ["ja", "../x"]}))
    assert damaged.status == "unreadable"


def test_without_all_transcripts_scores_and_rules_stay_as_recorded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old", scoring=OLD_RULES)
    path = folder / "predictions" / "test_before.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    (run,) = find_runs(folder)
    assert run.results["scoring"] == OLD_RULES
    assert run.score("validation") == run.results["scores"]["after"]["validation"]["cer"]


def test_todays_scores_are_read_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.runs.reader.rescored", lambda *arguments: pytest.fail("scored again"))
    (run,) = find_runs(write_run(tmp_path / "new"))
    assert run.score("validation") == run.results["scores"]["after"]["validation"]["cer"]
    assert run.predictions("test")


@pytest.mark.parametrize(
    ("config", "language"),
    [
        ({"model": {"language": "zh", "task": "translate"}, "data": {"language": "zh-CN"}}, "en"),
        ({"model": {"language": "zh"}, "data": {"language": "zh-CN"}}, "zh"),
        ({"data": {"language": "de"}}, "de"),
        ({}, "ja"),
    ],
)
def test_the_language_of_an_old_runs_text(config: dict[str, Any], language: str) -> None:
    assert Run(Path(), "a", "completed", results={"config": config}).text_language == language


def test_an_evaluation_without_a_set_language_equals_an_old_one_that_set_the_models(tmp_path: Path) -> None:
    used = {"name": "a", "parameters": 1, "language": "ja", "task": "transcribe"}
    unset = {"checkpoint": "a", "model": {"language": None, "task": None}}
    given = {"checkpoint": "a", "model": {"language": "ja", "task": "transcribe"}}
    write_run(tmp_path / "new", command="evaluate", config=unset, model=used)
    write_run(tmp_path / "old", command="evaluate", config=given)
    new, old = find_runs(tmp_path)
    assert new.identity == old.identity
    assert new.choices == old.choices
    assert new.choices["model.language"] == "ja"
