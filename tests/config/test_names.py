"""Old and misspelt names: refused with the current name, translated in the record of an old run."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from kikitori.config.names import (
    RENAMED_CHOICES,
    RENAMED_KEYS,
    RENAMED_TARGETS,
    outdated,
    translate,
)
from kikitori.config.overrides import config_folders
from kikitori.config.suggestions import every_key, explain, unknown_option, wrong_words
from kikitori.config.targets import TARGETS
from kikitori.config.validation import check_config
from kikitori.runs.resume import changes, expand_resume, keep_changed_defaults
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

# results.json of a run that was interrupted, as kikitori wrote it before these names changed.
OLD_RUN = Path(__file__).parent / "old_run"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.global_batch=8", "data.global_batch is now data.global_batch_size"),
        ("data.batch=auto", "data.batch is now data.micro_batch_size"),
        ("data.cache_encoder=true", "data.cache_encoder is now data.cache_encoder_outputs"),
        ("accept=[seed]", "accept is now resume_accept"),
        ("sweep.resume=outputs/a", "sweep.resume is now resume_sweep"),
        ("+data.batch=2", "data.batch is now data.micro_batch_size"),
        ("experiment=article", "experiment=article is now experiment=tutorial_100_clips"),
        ("+experiment=hf_blog", "experiment=hf_blog is now experiment=hf_fine_tune_whisper"),
        ("callbacks=[best]", "callbacks=[best] is now callbacks=[best_checkpoint]"),
        (
            "model._target_=kikitori.whisper.load",
            "model._target_=kikitori.whisper.load is now model._target_=kikitori.load_whisper",
        ),
        (
            "hydra.sweeper.params.data.global_batch=8,16",
            "hydra.sweeper.params.data.global_batch is now hydra.sweeper.params.data.global_batch_size",
        ),
        ("data={batch: 4}", "data={batch: 4} is now data={micro_batch_size: 4}"),
    ],
)
def test_an_old_name_gives_the_new_one(word: str, message: str) -> None:
    assert list(outdated(["data=demo", word])) == [message]


@pytest.mark.parametrize(
    "word",
    [
        *("data.global_batch_size=8", "sweep=size", "experiment=demo", "optim.lr=1e-5", "-m"),
        *("experiment=theirs/article", "callbacks=[best-3,my_best]", "notes={batch: 4}", "data={name: 'batch: 4'}"),
    ],
)
def test_a_current_name_is_unchanged(word: str) -> None:
    assert not list(outdated([word]))
    assert translate(word) == word


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.global_batch=choice(8,16)", "data.global_batch_size=choice(8,16)"),
        ("experiment=article,hf_blog", "experiment=tutorial_100_clips,hf_fine_tune_whisper"),
        ("callbacks=best,early_stopping", "callbacks=best_checkpoint,early_stopping"),
        ("data.eval_batch_size=${data.global_batch}", "data.eval_batch_size=${data.global_batch_size}"),
        (
            "+callbacks.pruning={_target_:kikitori.pruning.PruneByStudy,study:a,name:b,trial:1}",
            "+callbacks.pruning={_target_:kikitori.OptunaPruning,study:a,name:b,trial:1}",
        ),
        ("~callbacks=best", "~callbacks=best_checkpoint"),
        ("model.name=best", "model.name=best"),
        ("experiment=theirs/article, article", "experiment=theirs/article, tutorial_100_clips"),
        ("experiment=choice('article',demo)", "experiment=choice('tutorial_100_clips',demo)"),
        (
            "callbacks=choice([best],[best,early_stopping])",
            "callbacks=choice([best_checkpoint],[best_checkpoint,early_stopping])",
        ),
        ("hydra.sweeper.params.+experiment=article", "hydra.sweeper.params.+experiment=tutorial_100_clips"),
        (
            "hydra.sweeper.params={data.batch: 4, callbacks: 'best,early_stopping'}",
            "hydra.sweeper.params={data.micro_batch_size: 4, callbacks: 'best_checkpoint,early_stopping'}",
        ),
        (
            "data={limit: {train: 8}, batch: 4},{batch: 8}",
            "data={limit: {train: 8}, micro_batch_size: 4},{micro_batch_size: 8}",
        ),
    ],
)
def test_an_override_of_an_old_run_is_translated(old: str, new: str) -> None:
    assert translate(old) == new


@pytest.mark.parametrize("option", ["--config-dir {}", "--config-dir={}", "-cd {}", "hydra.searchpath=[file://{}]"])
def test_a_choice_of_the_users_own_may_have_an_old_name(tmp_path: Path, option: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/article.yaml").touch()
    words = [*option.format(tmp_path).split(), "experiment=article"]
    own = config_folders(words)
    assert not list(outdated(words[-1:], own))
    assert list(outdated(["experiment=hf_blog"], own))
    assert translate(f"experiment={'x' * 5000}", [tmp_path]) == f"experiment={'x' * 5000}"
    assert translate("experiment=article,hf_blog", [tmp_path]) == "experiment=article,hf_fine_tune_whisper"


def test_an_old_key_that_a_sweep_varies_is_named_where_a_trial_is_composed() -> None:
    assert refusal("train", "data.batch=4") == "data.batch is now data.micro_batch_size"


def test_new_names_exist_and_old_ones_do_not() -> None:
    allowed = {name for names in TARGETS.values() for name in names}
    assert set(RENAMED_TARGETS.values()) <= allowed
    assert not set(RENAMED_TARGETS) & allowed
    assert set(RENAMED_KEYS.values()) <= set(every_key())
    assert not set(RENAMED_KEYS) & set(every_key())
    for group, choices in RENAMED_CHOICES.items():
        for old, new in choices.items():
            assert (CONF / group / f"{new}.yaml").exists()
            assert not (CONF / group / f"{old}.yaml").exists()


def composed(command: str, *words: str) -> Any:
    """The configuration of a command, without Hydra's own node but with its values."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose(command, list(words), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "run"
        HydraConfig.instance().set_config(cfg)
        keep_changed_defaults(cfg, words, Path(cfg.hydra.run.dir))
        del cfg["hydra"]
    return cfg


def test_an_old_run_is_resumed_without_changes() -> None:
    words = expand_resume("train", [f"resume={OLD_RUN}"])
    assert words[-2:] == [f"hydra.run.dir={OLD_RUN}", "resume=auto"]
    assert {"data.global_batch_size=4", "data.micro_batch_size=2", "callbacks=best_checkpoint"} <= set(words)
    cfg = composed("train", *words)
    now = check_config(cfg)
    old = json.loads((OLD_RUN / "results.json").read_text(encoding="utf-8"))["config"]
    assert "global_batch" in old["data"]
    assert not changes(old, now)


def test_a_change_of_a_renamed_key_is_still_a_change() -> None:
    before, now = {"data": {"global_batch": 8}}, {"data": {"global_batch_size": 16}}
    assert changes(before, now) == {"data.global_batch_size": "was 8, is now 16"}


def test_an_old_key_in_a_file_of_the_users_own_is_named() -> None:
    cfg = composed("train", "data=demo", "+data.global_batch=8", "+accept=[seed]")
    with pytest.raises(ConfigError) as caught:
        check_config(cfg)
    assert "2 problems in the configuration" in str(caught.value)
    assert "data.global_batch: was renamed to data.global_batch_size" in str(caught.value)
    assert "accept: was renamed to resume_accept" in str(caught.value)


def test_an_old_target_is_refused_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"got 'kikitori\.whisper\.load', which is now kikitori\.load_whisper"):
        check_config(OmegaConf.create({"model": {"_target_": "kikitori.whisper.load"}}))


def refusal(command: str, *words: str) -> str:
    with pytest.raises(HydraException) as caught:
        composed(command, *words)
    message = explain(caught.value, command, words)
    assert "To append" not in message
    assert "earch path" not in message
    return message


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.learning_rate=1e-5", "optim.learning_rate: no such key; did you mean optim.lr?"),
        ("lr=3e-5", "lr: no such key; did you mean optim.lr?"),
        ("trainer.max_step=3", "trainer.max_step: no such key; did you mean trainer.max_steps?"),
        ("trainer.strategy=ddp", "trainer.strategy: not set yet; add it with a +: +trainer.strategy=..."),
        ("callbacks.checkpoint.save_top_k=3", "not set yet; add it with a +: +callbacks.checkpoint.save_top_k=..."),
        ("callbacks.checkpoint.every_n_train_steps=2", "every_n_train_steps: a checkpoint is chosen by its valid"),
        ("callbacks.early_stopping.patience=2", "it belongs to callbacks=early_stopping"),
        ("batch_size=8", "did you mean data.global_batch_size or data.micro_batch_size or data.eval_batch_size?"),
        ("optim.gamma=0.9", "optim.gamma: no such key; there are optim.lr, optim.weight_decay, "),
        ("optim.momentum=0.9", "optim.momentum: no such key here; it belongs to optim=muon"),
        ("label_smoothing_factor=0.1", "no such key; did you mean loss.label_smoothing?"),
        ("epochs=3", "epochs: no such key; did you mean trainer.max_epochs?"),
        ("per_device_train_batch_size=8", "no such key; did you mean data.global_batch_size?"),
        ("output_dir=x", "output_dir: no such key; did you mean hydra.run.dir?"),
        ("trainer.val_check_interval=50", "trainer.val_check_interval: set validation.every_epochs or"),
        ("trainer.benchmark=true", "trainer.benchmark: not set yet; add it with a +: +trainer.benchmark=..."),
        ("data.manifest=a.csv", "data.manifest: no such key here; it belongs to data=manifest"),
        ("data.manifets=a.csv", "data.manifets: no such key; did you mean data.manifest, of data=manifest?"),
        ("hydra.launcher.paralel=2", "did you mean hydra.launcher.parallel?"),
        ("hydra/sweeper/sampler=grid", "hydra/sweeper/sampler: needs hydra/sweeper=optuna"),
        ("optim.lr", "optim.lr: no value; settings are given as key=value: optim.lr=..."),
        ("optim.lrr", "optim.lrr: no value; settings are given as key=value: optim.lr=..."),
        ("data", "data: no value; settings are given as key=value: data=..."),
        ("xyz", "xyz: no value; settings are given as key=value, such as optim.lr=3e-5"),
        ("~optim.lrr", "optim.lrr: no such key; did you mean optim.lr?"),
        ("~optimm", "optimm: no such group; did you mean optim?"),
        ("~data.batch", "data.batch is now data.micro_batch_size"),
        ("+optim.lr=1", "+optim.lr: this key is there already; leave out the +"),
        ("data.limit={val: 3}", "data.limit.val: no such key; did you mean data.limit.validation?"),
        ("optim={lr: 1, gamma: 2}", "optim.gamma: no such key; there are optim.lr, optim.weight_decay, "),
        ("modle=micro", "modle: no such group; did you mean model?"),
        ("model=whisper_smal", "model=whisper_smal: no such choice; did you mean whisper_small? There are micro, "),
        ("trainer=gpu", "trainer=gpu: no such choice. There are auto, ddp"),
        (
            "model=openai/whisper-tiny",
            "model=openai/whisper-tiny: no such choice; a folder, or a name on the Hugging Face Hub, is given as "
            "model.name=openai/whisper-tiny",
        ),
        ("model=/a/folder", "model=/a/folder: no such choice; a folder, or a name on the Hugging Face Hub, is given"),
        ("data=./a.csv", "data=./a.csv: no such choice; a release of Common Voice is given as data.release=./a.csv"),
        ("model=/models/whisper_base", "is given as model.name=/models/whisper_base"),
        ("model=openai/whisper-tiny", "is given as model.name=openai/whisper-tiny"),
        ("data=corpora/ja", "is given as data.release=corpora/ja"),
        ("trainer.val_check_interval=50", "set validation.every_epochs or validation.every_steps"),
        ("experiment=demos", "experiment=demos: no such choice; did you mean demo?"),
        ("hydra/launcher=slurmm", "hydra/launcher=slurmm: no such choice; did you mean slurm?"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_closest_one(word: str, message: str) -> None:
    assert message in refusal("train", word)


def test_a_group_or_key_of_another_command_is_named() -> None:
    assert refusal("prepare", "model=micro") == "model: kikitori prepare has no such group; it has data"
    others = "kikitori guard or kikitori export or kikitori evaluate"
    assert refusal("train", "checkpoint=x") == f"checkpoint: not a key of kikitori train; it belongs to {others}"
    assert refusal("evaluate", "optim.lr=1") == "optim.lr: not a key of kikitori evaluate"


def test_the_file_that_names_an_unknown_choice_is_given(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /callbacks: best\n")
    message = refusal("train", "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert message.endswith("callbacks=best is now callbacks=best_checkpoint")


def test_a_path_without_a_key_is_answered_with_the_key(tmp_path: Path) -> None:
    (fault,) = wrong_words("evaluate", [str(tmp_path)])
    assert fault == f"{tmp_path}: no key; a path is given as checkpoint={tmp_path}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "3"], "--max_steps is not an option; settings are given as key=value: trainer.max_steps=3"),
        (["--lr=3e-5", "data=demo"], "--lr is not an option; settings are given as key=value: optim.lr=3e-5"),
        (
            ["--max-steps", "data=demo"],
            "--max-steps is not an option; settings are given as key=value: trainer.max_steps=...",
        ),
        (["--model=micro"], "--model is not an option; settings are given as key=value: model=micro"),
        (["--epochs", "3"], "--epochs is not an option; settings are given as key=value: trainer.max_epochs=3"),
        (["-lr", "1e-3"], "-lr is not an option; settings are given as key=value: optim.lr=1e-3"),
        (["--nonesuch"], "--nonesuch is not an option; settings are given as key=value, such as optim.lr=3e-5"),
    ],
)
def test_a_key_written_as_an_option_is_answered_with_an_override(words: list[str], message: str) -> None:
    assert unknown_option(words, ["--help", "--multirun"]) == message


def test_an_abbreviated_option_is_one() -> None:
    assert unknown_option(["--multi", "--help", "-m", "-cjob"], ["--help", "--multirun", "-m", "-c"]) is None
