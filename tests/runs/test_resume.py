"""`resume=` and `resume_sweep=` use the recorded command of a folder; overrides given now take precedence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kikitori.config.overrides import config_options
from kikitori.runs.resume import (
    changes,
    expand_resume,
    expand_resume_sweep,
    keep_changed_defaults,
    refuse_changes,
    start_folder_of,
)
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import write_json
from kikitori.sweeps.trials import Sweep


def run(folder: Path, *overrides: str, command: str = "train", options: Sequence[str] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    facts = {"command": command, "overrides": list(overrides), "options": list(options)}
    write_json(folder / "results.json", facts)
    return folder


def test_a_run_is_resumed_with_the_overrides_it_was_started_with(tmp_path: Path) -> None:
    folder = run(tmp_path / "it's a run", "experiment=demo", "optim.lr=1e-4", "+callbacks.x=1", "resume=auto")
    line = expand_resume("train", [f"resume={folder}"])
    quoted = str(folder).replace("'", "\\'")
    assert line == ["experiment=demo", "optim.lr=1e-4", "+callbacks.x=1", f"hydra.run.dir='{quoted}'", "resume=auto"]


def test_overrides_given_now_replace_those_of_the_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "experiment=demo", "optim.lr=1e-4", "+data.x=1", "resume_accept=[seed]")
    line = expand_resume("train", ["optim.lr=3e-4", f"resume='{folder}'", "data.x=2", "resume_accept=[optim.lr]"])
    assert line[:-2] == ["experiment=demo", "optim.lr=3e-4", "data.x=2", "resume_accept=[optim.lr]"]


def test_a_users_own_configuration_folder_is_kept(tmp_path: Path) -> None:
    sources = [{"provider": "main", "path": "/theirs/conf"}, {"provider": "command-line", "path": "/mine"}]
    hydra = OmegaConf.create({"runtime": {"config_sources": sources}, "job": {"config_name": "train"}})
    folder = run(tmp_path / "a", "experiment=mine", options=config_options(hydra, "train"))
    line = expand_resume("train", [f"resume={folder}"])
    assert line[:4] == ["--config-path", "/theirs/conf", "--config-dir", "/mine"]
    # argparse accepts no option between two overrides.
    assert expand_resume("train", ["--config-dir", "/other", f"resume={folder}"])[:3] == [
        "--config-dir",
        "/other",
        "experiment=mine",
    ]


@pytest.mark.parametrize(
    "options",
    [["--experimental-rerun", "x"], ["--exp=x"], ["-m"], ["--config-dir", "--exp=x"], ["--config-dir"], ["-cd"], [1]],
)
def test_no_other_options_are_taken_from_a_record(tmp_path: Path, options: Any) -> None:
    folder = run(tmp_path / "a", "seed=1", options=options)
    with pytest.raises(DataError, match=r"results\.json (holds the option|cannot be read: results\.json\.options)"):
        expand_resume("train", [f"resume={folder}"])


@pytest.mark.parametrize("words", [["--experimental-rerun=x"], ["--exp", "x"], ["-m"], ["--config-dir=/x"], ["--"]])
def test_no_options_are_taken_from_the_overrides_of_a_record(tmp_path: Path, words: list[str]) -> None:
    folder = run(tmp_path / "a", "seed=1", *words)
    with pytest.raises(DataError, match="among its overrides"):
        expand_resume("train", [f"resume={folder}"])


@pytest.mark.parametrize("word", ["hydra.mode=MULTIRUN", "hydra/launcher=slurm", "+hydra={a: 1}"])
def test_a_run_records_nothing_for_hydra(tmp_path: Path, word: str) -> None:
    folder = run(tmp_path / "a", "seed=1", word)
    with pytest.raises(DataError, match="which no run records"):
        expand_resume("train", [f"resume={folder}"])


@pytest.mark.parametrize(
    ("word", "again"),
    [
        ("data.roots=[/mnt]", "data.roots=[/mnt]"),
        ("++data={roots: [/mnt]}", "++data={roots: [/mnt]}"),
        ("data.roots@_global_=[/mnt]", "data.roots@_global_=[/mnt]"),
        ("logger.tensorboard.save_dir=/mnt", "logger.tensorboard.save_dir=runs"),
        ("augment.noise_folder=/mnt", "augment.noise_folder=/mnt"),
        # Relative to a working folder that the record names.
        ("logger.tensorboard.save_dir=runs", "logger.tensorboard.save_dir=runs"),
    ],
)
def test_what_only_a_person_may_set_is_typed_again(tmp_path: Path, word: str, again: str) -> None:
    folder = run(tmp_path / "a", "seed=1", word)
    with pytest.raises(
        ConfigError, match=r"a/results\.json sets (data\.roots|logger|augment).*give it on the command line"
    ):
        expand_resume("train", [f"resume={folder}"])
    assert again in expand_resume("train", [again, f"resume={folder}"])


def test_a_sweep_runs_no_commands_that_its_record_names(tmp_path: Path) -> None:
    words = ["-m", "seed=1,2", "hydra/launcher=slurm"]
    setup = "+hydra.launcher.setup=[touch x]"
    resume = sweep(tmp_path / "b", *words, setup)
    with pytest.raises(ConfigError, match=r"sweep\.json sets hydra\.launcher\.setup: runs commands"):
        expand_resume_sweep("train", [resume])
    assert expand_resume_sweep("train", [resume, setup]) == [*words, resume, setup]
    command = Sweep(tmp_path, ["kikitori", "train", *words, setup]).resume_command
    assert command.endswith(f"resume_sweep={tmp_path} '{setup}'")


@pytest.mark.parametrize(
    "option", ["--config-dir /other", "--config-dir=/other", "-cd /other", "-cn other", "--config-n=b"]
)
def test_a_configuration_given_now_replaces_that_of_the_run_or_sweep(tmp_path: Path, option: str) -> None:
    folder = run(tmp_path / "a", "experiment=mine", options=["--config-dir", "/mine"])
    assert "/mine" not in expand_resume("train", [*option.split(), f"resume={folder}"])
    resume = sweep(tmp_path / "b", "--config-dir", "/mine", "-m", "experiment=mine")
    line = expand_resume_sweep("train", [*option.split(), resume])
    assert "/mine" not in line
    assert "-m" in line


def test_the_value_of_an_option_is_no_override(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "seed=1", "a=1", options=["--config-dir", "a=b"])
    line = expand_resume("train", [f"resume={folder}"])
    assert line == ["--config-dir", "a=b", "seed=1", "a=1", f"hydra.run.dir={folder}", "resume=auto"]
    line = expand_resume("train", ["seed=2", "-cd", "a=c", f"resume={folder}"])
    assert line == ["-cd", "a=c", "a=1", "seed=2", f"hydra.run.dir={folder}", "resume=auto"]
    resume = sweep(tmp_path / "b", "--config-dir", "a=b", "-m", "seed=1,2")
    assert expand_resume_sweep("train", [resume]) == ["--config-dir", "a=b", "-m", "seed=1,2", resume]


def test_a_choice_of_the_users_own_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/article.yaml").touch()
    options = ["--config-dir", str(tmp_path / "mine")]
    folder = run(tmp_path / "a", "experiment=article", options=options)
    assert "experiment=article" in expand_resume("train", [f"resume={folder}"])
    resume = sweep(tmp_path / "b", *options, "-m", "experiment=article,hf_blog")
    assert "experiment=article,hf_fine_tune_whisper" in expand_resume_sweep("train", [resume])


@pytest.mark.parametrize("line", [["seed=1"], ["resume=auto", "hydra.run.dir=x"], ["resume=null"], []])
def test_lines_without_a_run_to_resume_are_unchanged(line: list[str]) -> None:
    assert expand_resume("train", line) == line


def test_a_folder_without_a_run_of_the_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume=true holds no run; give a run's folder, or resume=auto"):
        expand_resume("train", ["resume=true"])
    with pytest.raises(ConfigError, match=r"resumes a single run; for a sweep use resume_sweep="):
        expand_resume("train", ["-m", f"resume={run(tmp_path / 'a')}"])
    folder = run(tmp_path / "a", command="evaluate")
    with pytest.raises(ConfigError, match="holds a run of kikitori evaluate, not of train"):
        expand_resume("train", [f"resume={folder}"])
    (folder / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json cannot be read"):
        expand_resume("train", [f"resume={folder}"])


def sweep(folder: Path, *words: object, command: str = "train") -> str:
    folder.mkdir(exist_ok=True)
    write_json(folder / "sweep.json", {"command": ["kikitori", command, *words], "trials": []})
    return f"resume_sweep={folder}"


def test_a_sweep_is_resumed_with_the_command_that_started_it(tmp_path: Path) -> None:
    words = ["-m", "experiment=demo", "optim.lr=1e-3,3e-4", "~callbacks.x", "sweep=size"]
    resume = sweep(tmp_path / "a", *words, "sweep.resume=/old", "hydra.sweep.dir=/old")
    assert expand_resume_sweep("train", ["-m", resume]) == [*words, resume]
    assert expand_resume_sweep("train", [resume]) == [*words, resume]


def test_overrides_given_now_replace_those_of_the_sweep(tmp_path: Path) -> None:
    resume = sweep(tmp_path / "a", "--multirun", "optim.lr=1e-3,3e-4", "hydra.launcher.parallel=1")
    line = expand_resume_sweep("train", ["-m", "hydra.launcher.parallel=4", resume])
    assert line == ["--multirun", "-m", "optim.lr=1e-3,3e-4", "hydra.launcher.parallel=4", resume]


def test_a_sweep_keeps_its_configuration_folder_unless_another_is_given(tmp_path: Path) -> None:
    words = ["--config-dir", "mine", "-m", "+x=1", "~callbacks.y"]
    resume = sweep(tmp_path / "a", *words)
    assert expand_resume_sweep("train", [resume]) == [*words, resume]
    other = ["-m", "--config-dir", "other", resume]
    assert expand_resume_sweep("train", other) == [*other[:3], "+x=1", "~callbacks.y", resume]


@pytest.mark.parametrize("line", [["-m", "seed=1,2"], ["resume_sweep=null"], ["resume_sweep="]])
def test_lines_without_a_sweep_to_resume_are_unchanged(line: list[str]) -> None:
    assert expand_resume_sweep("train", line) == line


def test_a_sweep_of_another_command_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a sweep of kikitori evaluate, not of train"):
        expand_resume_sweep("train", [sweep(tmp_path / "a", "-m", command="evaluate")])
    with pytest.raises(DataError, match=r"sweep\.json cannot be read: sweep\.json\.command is"):
        expand_resume_sweep("train", [sweep(tmp_path / "b", {"a": 1})])
    with pytest.raises(ConfigError, match=r"resume_sweep=gone holds no sweep\.json; give the folder of a sweep"):
        expand_resume_sweep("train", ["-m", "resume_sweep=gone"])
    (tmp_path / "b" / "sweep.json").write_text("{")
    with pytest.raises(DataError, match=r"sweep\.json cannot be read"):
        expand_resume_sweep("train", [f"resume_sweep='{tmp_path}/b'"])


def test_the_words_of_a_resumed_sweep_can_be_parsed(tmp_path: Path) -> None:
    from hydra._internal.utils import get_args_parser

    resume = sweep(tmp_path / "a", "--config-dir", "mine", "-m", "+x=1")
    args = get_args_parser().parse_args(expand_resume_sweep("train", ["-m", resume, "optim.lr=1"]))
    assert (args.multirun, args.config_dir, args.overrides) == (True, "mine", ["+x=1", resume, "optim.lr=1"])


def test_a_choice_given_now_replaces_what_was_said_about_entries_it_lacks(tmp_path: Path) -> None:
    recorded = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.checkpoint.monitor=val/wer",
    ]
    recorded += ["logger=wandb", "logger.wandb.project=a", "+callbacks.mine.a=1"]
    folder = run(tmp_path / "a", *recorded)
    line = expand_resume("train", [f"resume={folder}", "callbacks=best_checkpoint", "logger=none"])
    assert line[:2] == ["callbacks.checkpoint.monitor=val/wer", "+callbacks.mine.a=1"]
    line = expand_resume("train", [f"resume={folder}", "callbacks=best_checkpoint", "logger=both"])
    assert "logger.wandb.project=a" in line
    assert "callbacks.early_stopping.patience=1" in expand_resume("train", [f"resume={folder}", "callbacks=of_mine"])


def test_a_length_given_now_replaces_the_recorded_one_in_the_other_unit(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "trainer.max_steps=6", "validation.every_epochs=1", "seed=1")
    line = expand_resume("train", [f"resume={folder}", "trainer.max_epochs=3", "validation.every_steps=2"])
    assert line[:-2] == ["seed=1", "trainer.max_epochs=3", "validation.every_steps=2"]


def test_a_run_is_resumed_in_the_folder_where_it_was_started(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "seed=1")
    assert start_folder_of([f"resume={folder}"]) is None  # of an earlier version
    for record in ("results.json", "sweep.json"):
        write_json(folder / record, {"cwd": str(tmp_path), "trials": []})
    assert start_folder_of(["seed=1", f"resume='{folder}'"]) == tmp_path
    assert start_folder_of([f"resume_sweep={folder}"]) == tmp_path
    write_json(folder / "results.json", {"cwd": str(tmp_path / "gone")})
    for line in ([f"resume={folder}"], ["resume=auto"], ["resume=null"], ["seed=1"], []):
        assert start_folder_of(line) is None


def test_a_run_of_an_earlier_version_keeps_its_value_where_a_default_has_changed(tmp_path: Path) -> None:
    config = {"optim": {"warmup_steps": 500, "lr": 1}, "data": {"full_window_share": 0.0}}
    write_json(tmp_path / "results.json", {"config": config})

    def kept(resume: str | None, *words: str, warmup: int | None = None, share: float = 0.1) -> Any:
        config = {
            "resume": resume,
            "optim": {"warmup_steps": warmup, "lr": 2},
            "data": {"full_window_share": share},
        }
        cfg = OmegaConf.create(config)
        keep_changed_defaults(cfg, words, tmp_path)
        assert cfg.optim.lr == 2
        return cfg.optim.warmup_steps, cfg.data.full_window_share

    assert kept("auto") == (500, 0.0)
    assert kept(None) == (None, 0.1)
    assert kept("auto", "optim.warmup_steps=null", "data.full_window_share=0.1") == (None, 0.1)
    assert kept("auto", "optim.warmup_steps=3", warmup=3, share=0.5) == (3, 0.5)


def test_a_key_that_a_later_version_has_added_is_no_change() -> None:
    old = {"trainer": {"max_steps": 4}, "data": {"limit": {"train": 8}}}
    new = {
        "trainer": {"max_steps": 4, "max_epochs": None, "benchmark": True},
        "data": {"limit": {"train": 8, "seed": 0}},
    }
    assert changes(old, new) == {}
    assert changes(old, new, ["trainer.benchmark"]) == {"trainer.benchmark": "was null, is now true"}
    # A new node is a change: it can only have been chosen.
    stopping = {**new, "callbacks": {"early_stopping": {"patience": 1}}}
    assert changes(old, stopping) == {"callbacks.early_stopping.patience": "was null, is now 1"}


def test_an_augmentation_is_a_change_if_it_changes_clips() -> None:
    """Runs of earlier versions have none."""
    off, on = ({"augment": {"noise_prob": prob, "snr_db": [0, 9]}, "seed": 1} for prob in (0.0, 0.3))
    assert changes({"seed": 1}, off) == {}
    assert changes(off, {"seed": 1}) == {}
    assert changes(off, {**off, "augment": {"noise_prob": 0, "snr_db": [5, 9]}}) == {}
    assert changes({"seed": 1}, on)["augment.noise_prob"] == "was null, is now 0.3"
    assert changes(on, off)["augment.noise_prob"] == "was 0.3, is now null"


def test_a_path_written_in_another_way_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = {"data": {"manifest": "a/b.csv"}}, {"data": {"manifest": f"{tmp_path}/a/b.csv"}}
    assert changes(old, new) == {}
    assert changes(old, {"data": {"manifest": "/a/b.csv"}}) == {"data.manifest": "was a/b.csv, is now /a/b.csv"}


def test_an_optimizer_of_an_earlier_version_is_the_same_recipe() -> None:
    old = {"optim": {"_target_": "kikitori.optim.build", "_partial_": True, "lr": 1e-5}}
    new = {"optim": {"_target_": "kikitori.adamw", "lr": 1e-5}}
    assert changes(old, new) == {}
    assert changes(old, {"optim": {**new["optim"], "lr": 1e-4}}) == {"optim.lr": "was 1e-05, is now 0.0001"}


@pytest.mark.parametrize(("now", "changed"), [(None, False), ("ja", False), ("de", True)])
def test_the_models_own_language_is_no_change_of_a_recorded_one(now: str | None, changed: bool) -> None:
    recorded = {"model": {"language": "ja", "task": "transcribe"}}
    found = changes(recorded, {"model": {"language": now, "task": None}})
    assert list(found) == (["model.language"] if changed else [])


@pytest.mark.parametrize("key", ["_target_", "rank", "targets"])
def test_a_resumed_run_keeps_the_matrices_of_its_adapter(key: str, tmp_path: Path) -> None:
    lora = {"_target_": "kikitori.Lora", "rank": 4, "alpha": 8, "targets": ["q_proj"]}
    other = {"_target_": "kikitori.AdaLora", "rank": 8, "targets": ["fc1"]}[key]
    found = changes({"adapter": lora}, {"adapter": {**lora, key: other}})
    with pytest.raises(ConfigError, match=rf"adapter\.{key}: was .*; a resumed run keeps it: the adapter in its"):
        refuse_changes(found, ["adapter"], tmp_path)
    assert changes({}, {"adapter": lora}).keys() >= {"adapter._target_", "adapter.rank"}
    refuse_changes(changes({"adapter": lora}, {"adapter": {**lora, "alpha": 4}}), ["adapter.alpha"], tmp_path)
