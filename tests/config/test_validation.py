"""Every choice under conf/ composes, its keys are arguments of its target, and invalid values are reported at once."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from kikitori.adapters import layers
from kikitori.config.overrides import swept
from kikitori.config.validation import check_config
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

ROOTS = ("train", "evaluate", "prepare", "guard", "average", "export")
CHOICES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("*/*.yaml"))
# The choices of Hydra's own groups: launcher, sweeper, sampler and pruner.
OF_HYDRA = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("hydra/**/*.yaml"))
EARLY, BEST = (f"pytorch_lightning.callbacks.{name}" for name in ("EarlyStopping", "ModelCheckpoint"))
REQUIRED = {
    "data/common_voice": ["data.release=a"],
    "data/manifest": ["data.manifest=a.csv"],
    "data/hub": ["data.name=a/b"],
}


def with_hydra(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose(root, list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "run"
    HydraConfig.instance().set_config(cfg)
    return cfg


def composed(root: str, *overrides: str) -> DictConfig:
    cfg = with_hydra(root, *overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


AUGMENTED = [
    ("augment.noise_prob=1.5", "augment.noise_prob: must be a probability between 0 and 1, got 1.5"),
    ("augment.noise_prob=often", "augment.noise_prob: must be a probability between 0 and 1, got 'often'"),
    (
        "augment.snr_db=loud",
        "augment.snr_db: must be two numbers, a lower and an upper one, such as [10, 30], got 'loud'",
    ),
    ("augment.snr_db=[20,5]", "augment.snr_db: must have the lower number first: [5,20], got [20, 5]"),
    ("augment.noise_kinds=[brown]", "augment.noise_kinds: must be a list of some of white, pink, babble"),
    ("augment.noise_folder=/no/such", "augment.noise_folder: /no/such is not a folder"),
    ("augment.room_prob=0.5", "augment.room_prob: needs a folder of impulse responses"),
    ("augment.noise_folder=7", "augment.noise_folder: must be a text or null, got 7; to make it a text, quote it"),
    ("+augment.snr=[1,2]", "augment.snr: kikitori.Augmentation has no such argument; did you mean snr_db?"),
    ("+data.augment=light", "data.augment: choose augment=light, heavy, telephone or none"),
    ("data.cache_encoder_outputs=true", "data.cache_encoder_outputs: cannot be used with augmentation"),
]


@pytest.mark.parametrize(("word", "message"), AUGMENTED)
def test_an_impossible_augmentation_is_named_once(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_config(composed("train", "data=demo", "model.freeze=encoder", "augment=light", word))
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith("1 problem")
    assert message in lines[1]


def test_the_number_of_choices_is_known() -> None:
    assert len(CHOICES) == 43
    assert len(OF_HYDRA) == 9
    assert len(list(CONF.glob("*.yaml"))) == len(ROOTS) + 1
    deeper = [path for path in CONF.glob("*/*/*") if path.parts[-3] != "hydra"]
    assert not deeper, "one level deep, except for Hydra's own groups"


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_its_keys_are_arguments_of_its_target(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "is_available", lambda: True)  # peft is an extra
    # The extra that optim=adamw8bit needs may be missing.
    monkeypatch.setattr("kikitori.config.validation.find_spec", lambda name: True)
    group, name = choice.split("/")
    needed = REQUIRED.get(choice, [])
    if group != "data" and choice != "experiment/demo":
        needed = ["data.release=a"]
    check_config(composed("train", f"{group}={name}", *needed))


@pytest.mark.parametrize("choice", OF_HYDRA)
def test_every_choice_of_launcher_sweeper_sampler_and_pruner_can_be_imported(choice: str) -> None:
    group, name = choice.rsplit("/", 1)
    searching = ["hydra/sweeper=optuna"] if group.count("/") > 1 else []
    cfg = with_hydra("train", "data=demo", *searching, f"{group}={name}")
    assert get_object(OmegaConf.select(cfg, group.replace("/", "."))._target_)


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "sweep").glob("*.yaml")])
def test_every_value_of_a_predefined_sweep_is_valid(name: str) -> None:
    params = with_hydra("train", "data=demo", f"sweep={name}").hydra.sweeper.params
    assert params
    for key, values in params.items():
        assert len(str(values).split(",")) > 1
        for value in str(values).split(","):
            check_config(composed("train", "data=demo", f"{key}={value}"))


@pytest.mark.parametrize("root", ROOTS)
def test_every_command_composes(root: str) -> None:
    check_config(composed(root, "data=demo"))


def test_a_model_file_is_named_after_its_hub_name() -> None:
    names = {p.stem: composed("train", f"model={p.stem}").model.name for p in (CONF / "model").glob("whisper_*.yaml")}
    assert len(names) == 7
    assert all(name == "openai/" + stem.replace("_", "-") for stem, name in names.items())


def test_an_experiment_overrides_the_root_file_and_the_command_line_overrides_both() -> None:
    assert composed("train", "experiment=tutorial_100_clips").validation.every_steps == 10
    assert composed("train", "experiment=tutorial_100_clips", "validation.every_steps=7").validation.every_steps == 7


def test_the_tutorial_experiment_has_the_published_settings() -> None:
    cfg = composed("train", "experiment=tutorial_100_clips", "data.release=a")
    assert cfg.model.name == "openai/whisper-small"
    assert (cfg.data.limit.train, cfg.data.limit.validation, cfg.data.limit.test) == (100, 100, 100)
    assert (cfg.data.global_batch_size, cfg.optim.lr, cfg.optim.warmup_steps, cfg.trainer.max_steps) == (
        16,
        1e-5,
        5,
        40,
    )
    assert (cfg.trainer.precision, cfg.validation.every_steps) == ("16-mixed", 10)
    assert cfg.model.gradient_checkpointing
    assert cfg.data.group_by_length
    assert (cfg.generation.max_new_tokens, cfg.callbacks.checkpoint.monitor) == (225, "val/wer")
    assert list(cfg.logger) == ["tensorboard"]


def test_an_experiment_is_short_and_begins_with_its_question() -> None:
    files = list((CONF / "experiment").glob("*.yaml"))
    assert files
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 20
        assert lines[0] == "# @package _global_"
        assert "?" in lines[1]


def test_all_problems_are_reported_at_once_with_key_value_and_remedy() -> None:
    bad = ["optim.lr=-1", "data.global_batch_size=x", "model.freeze=all", "model.dropout=2", "trainer.precision=8"]
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", *bad))
    text = str(caught.value)
    assert text.startswith("6 problems in the configuration\n")
    assert "data.release: not set; pass data.release=/path/to/" in text
    assert "optim.lr: must be above 0, got -1" in text
    assert "data.global_batch_size: must be a whole number, got 'x'" in text
    assert "model.freeze: must be one of encoder, none, got 'all'" in text
    assert "model.dropout: must be between 0 and 1, got 2" in text
    assert "trainer.precision: must be one of auto, 16-mixed, bf16-mixed, 32, 32-true, got 8" in text


def test_a_key_that_is_no_argument_of_the_target_is_named() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_step: pytorch_lightning.Trainer has no such argument"):
        check_config(composed("train", "data=demo", "+trainer.max_step=3"))


def test_a_target_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIKITORI_TARGETS", "nonesuch.model")
    with pytest.raises(ConfigError, match=r"model\._target_: cannot be imported: nonesuch\.model"):
        check_config(composed("train", "data=demo", "model._target_=nonesuch.model"))


@pytest.mark.parametrize("override", ["model=whisper_smal", "data.releese=x", "nonesuch=1", "experiment=none"])
def test_an_unknown_choice_or_key_is_refused_when_composing(override: str) -> None:
    with pytest.raises(HydraException):
        composed("train", override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.schedule=step", "optim.schedule: must be one of linear, constant, cosine, wsd, got 'step'"),
        ("optim.lr=abc", "optim.lr: must be a number, got 'abc'"),
        ("optim.betas=[0.9,1]", "optim.betas: must be from 0 to below 1, got [0.9, 1]"),
        ("optim.decay_steps=0", "optim.decay_steps: must be above 0, got 0"),
        ("optim.decay_steps=a", "optim.decay_steps: must be a whole number or null, got 'a'"),
        (
            "optim.schedule=wsd optim.decay_steps=30 optim.warmup_steps=11 trainer.max_steps=40",
            "optim.decay_steps=30: with 11 steps of warm-up, more than the 40 steps of the training; null",
        ),
        ("optim=muon optim.momentum=1", "optim.momentum: must be below 1, got 1"),
        ("optim=muon optim.momentum=-1", "optim.momentum: must not be below 0, got -1"),
        ("+optim.momentum=0.9", "optim.momentum: kikitori.adamw has no such argument"),
        ("loss.label_smoothing=1", "loss.label_smoothing: must be below 1, got 1"),
        ("loss.label_smoothing=-0.1", "loss.label_smoothing: must not be below 0, got -0.1"),
        ("loss.label_smoothing=a", "loss.label_smoothing: must be a number or null, got 'a'"),
        ("+loss.smoothing=0.1", "loss.smoothing: no such key; "),
        ("ema.decay=0", "ema.decay: must be above 0, got 0"),
        ("ema.decay=1", "ema.decay: must be below 1, got 1"),
        ("ema.decay=true", "ema.decay: must be a number or null, got True"),
        ("seed={a:1}", "seed: must be a whole number, got {'a': 1}"),
        ("generation.num_beams={}", "generation.num_beams: must be a whole number or null, got {}"),
        ("data.window_edges_s=[5,inf]", "data.window_edges_s: must be ascending, finite and above 0, got [5, inf]"),
        ("optim.betas=[0.9]", "optim.betas: must be a list of 2 numbers, got [0.9]"),
        ("+optim.eps=1e-6", "optim.eps: kikitori.adamw has no such argument"),
        ("+optim._partial_=true", "optim._partial_: is not supported here; leave it out"),
        (
            "callbacks.checkpoint.monitor=val/foo",
            "callbacks.checkpoint.monitor: must be val/cer, val/wer or val/loss, got 'val/foo'",
        ),
        ("trainer.max_steps=abc", "trainer.max_steps: must be a whole number of at least 1 or null, got 'abc'"),
        (
            "trainer.gradient_clip_val=0",
            "trainer.gradient_clip_val: must be a number above 0, or null for no clipping, got 0",
        ),
        (
            "+trainer.accumulate_grad_batches=2",
            "trainer.accumulate_grad_batches: data.global_batch_size is the size of a step's batch",
        ),
        (
            "+trainer.gradient_clip_algorithm=value",
            "trainer.gradient_clip_algorithm: gradients are clipped by their norm",
        ),
        ("data.window=short", "data.window: must be one of full, bucketed or null, got 'short'"),
        ("data.window_edges_s=[5,3]", "data.window_edges_s: must be ascending, finite and above 0, got [5, 3]"),
        ("data.window_edges_s=[2,a]", "data.window_edges_s: must be "),
        ("data.window_edges_s=[]", "data.window_edges_s: data.window=bucketed needs at least one"),
        ("data.window_margin_s=-1", "data.window_margin_s: must not be below 0, got -1"),
        ("data.full_window_share=1.5", "data.full_window_share: must be between 0 and 1, got 1.5"),
        (
            "data.cache_encoder_outputs=true",
            "data.cache_encoder_outputs: needs a frozen encoder; add model.freeze=encoder",
        ),
        ("data.micro_batch_size=0", "data.micro_batch_size: must be above 0, got 0"),
        ("generation.max_tokens_per_s=-1", "generation.max_tokens_per_s: must be above 0, got -1"),
        ("score.full_window_clips=0", "score.full_window_clips: must be above 0, got 0"),
        ("data.global_batch_size=15 trainer.devices=2", "data.global_batch_size: must be a multiple of 2 ("),
        (
            "trainer.devices=0",
            "trainer.devices: must be a number of devices above 0, or auto, got 0; to choose GPUs, set",
        ),
        ("validation.every_steps=0", "validation.every_steps: must be above 0, got 0"),
        ("seed=abc", "seed: must be a whole number, got 'abc'"),
        ("seed=4294967296", "seed: must be at most 4294967295, got 4294967296"),
        ("optim.lr=inf", "optim.lr: must be a finite number, got inf"),
        ("optim.weight_decay=inf", "optim.weight_decay: must be a finite number, got inf"),
        ("validation.every_steps=null validation.every_epochs=inf", "validation.every_epochs: must be a finite number"),
        ("generation.max_new_tokens=1.5", "generation.max_new_tokens: must be a whole number or null, got 1.5"),
        ("data.max_duration_s=0", "data.max_duration_s: must be above 0, got 0"),
        ("data.limit.train=all", "data.limit.train: must be a whole number or null, got 'all'"),
    ],
)
def test_an_invalid_value_is_named(override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", "data=demo", *override.split(" ")))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "tasks", "nodes"),
    [
        ([], 1, 1),
        (["trainer=ddp", "trainer.devices=8"], 8, 1),
        (["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"], 4, 2),
    ],
)
def test_a_slurm_job_has_one_task_per_device_and_arguments_that_submitit_accepts(
    overrides: list[str], tasks: int, nodes: int
) -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("train", ["data=demo", "hydra/launcher=slurm", *overrides], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.nodes) == (tasks, tasks, nodes)
    known = {*slurm._get_default_parameters(), *slurm.SlurmExecutor._equivalence_dict()}
    of_the_executor = {"_target_", "submitit_folder", "max_num_timeout"}
    assert {str(key) for key in launcher} - of_the_executor <= known


def test_a_class_of_the_users_own_is_checked_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_callback.py").write_text("class Mine:\n    def __init__(self, a: int = 1):\n        pass\n")
    monkeypatch.setenv("KIKITORI_TARGETS", "own_callback.Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    mine = ["+callbacks.mine._target_=own_callback.Mine", "+callbacks.mine.b=1"]
    with pytest.raises(ConfigError, match=r"callbacks\.mine\.b: own_callback\.Mine has no such argument; it has a"):
        check_config(composed("train", "data=demo", *mine))
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        (
            "+trainer.val_check_interval=5",
            "trainer.val_check_interval: set validation.every_epochs or validation.every",
        ),
        ("+trainer.check_val_every_n_epoch=1", "trainer.check_val_every_n_epoch: set validation.every_epochs or"),
        ("+trainer.overfit_batches=0.1", "trainer.overfit_batches: set data.limit.train=8"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run: set trainer.max_steps=2 and data.limit.train=8"),
        (
            "+trainer.max_step=3",
            "trainer.max_step: pytorch_lightning.Trainer has no such argument, or kikitori does not support it; did "
            "you mean max_steps?",
        ),
    ],
)
def test_an_argument_of_the_trainer_without_effect_is_refused_with_the_one_to_use(override: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", "data=demo", override))
    assert remedy in str(caught.value)


def test_an_argument_of_the_trainer_at_its_neutral_value_is_accepted() -> None:
    neutral = ["+trainer.accumulate_grad_batches=1", "+trainer.limit_val_batches=1.0", "+trainer.overfit_batches=0.0"]
    check_config(composed("train", "data=demo", *neutral))


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["+callbacks.x.patience=3"], "callbacks.x: must be a mapping with a _target_, got {'patience': 3}"),
        ([f"+callbacks.x._target_={EARLY}"], "callbacks.x.monitor: not set; must be val/cer, val/wer or val/loss"),
        ([f"+callbacks.x._target_={BEST}", "+callbacks.x.monitor=val/wer"], "callbacks.x: a second ModelCheckpoint; "),
        (["+data.limit.val=3"], "data.limit.val: no such key; did you mean data.limit.validation?"),
        (["+nonsense=3"], "nonsense: no such key; see kikitori train --help"),
        (["+data.load_splits=[test]"], "data.load_splits: kikitori evaluate has splits for this"),
        (["data.language=7"], "data.language: must be a text or null, got 7; to make it a text, quote it: 'data.lang"),
        (["++validation=3"], "validation: must be a mapping"),
        (
            ["model=whisper_tiny", "model.name=../gone"],
            "model.name: ../gone does not exist; give a folder with a model",
        ),
        (["data=common_voice", "data.release=${nowhere}"], "data.release: Interpolation key 'nowhere' not found"),
    ],
)
def test_a_node_that_would_be_ignored_or_break_later_is_named(words: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", "data=demo", "model=micro", *words))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("own_pack.sub.Mein", "AttributeError: module 'own_pack.sub' has no attribute 'Mein'; did you mean Mine?"),
        ("own_pack.subs.Mine", "AttributeError: module 'own_pack' has no attribute 'subs'; did you mean sub?"),
        (
            "own_pac.sub.Mine",
            "own_pac is not installed, nor in {folder}; type the command in the folder that holds it",
        ),
        ("own_pack.broken.Mine", "ModuleNotFoundError: No module named 'nonesuch'"),
        ("own_pack.wrong.Mine", "ZeroDivisionError: division by zero"),
    ],
)
def test_why_a_class_of_the_users_own_cannot_be_imported_is_said(
    target: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_pack").mkdir()
    texts = {"__init__": "", "sub": "class Mine: pass", "broken": "import nonesuch", "wrong": "1 / 0"}
    for name, text in texts.items():
        (tmp_path / "own_pack" / f"{name}.py").write_text(f"{text}\n")
    monkeypatch.setenv("KIKITORI_TARGETS", f"a.B, {target}")
    monkeypatch.delenv("KIKITORI_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", "data=demo", f"+callbacks.mine._target_={target}"))
    assert f"cannot be imported: {target} ({fault.format(folder=tmp_path)}" in str(caught.value)


def test_an_argument_that_a_class_of_the_users_own_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_needs.py").write_text("class Mine:\n    def __init__(self, a, b=1):\n        pass\n")
    monkeypatch.setenv("KIKITORI_TARGETS", "own_needs.Mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"callbacks\.mine\.a: not set; own_needs\.Mine has no default for it"):
        check_config(composed("train", "data=demo", "+callbacks.mine._target_=own_needs.Mine"))


def test_splits_must_be_a_list() -> None:
    with pytest.raises(
        ConfigError, match=r"1 problem in the configuration\n  splits: must be a list of texts or null, got 'test'"
    ):
        check_config(OmegaConf.merge(composed("evaluate", "data=demo"), {"splits": "test"}))


def test_evaluate_refuses_an_unknown_split() -> None:
    with pytest.raises(ConfigError, match="splits: must be among train, validation, test, got dev"):
        check_config(composed("evaluate", "data=demo", "splits=[dev]"))


def test_the_folders_of_a_sweep_are_named_after_the_swept_keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["kikitori", "-m", "data.release=/a/b", "optim.lr=1e-5,3e-5", "model.name=/x/y,/x/z", "seed=range(0,2)"]
    monkeypatch.setattr("sys.argv", line)
    job = ["data.release=/a/b", "optim.lr=1e-5", "model.name=/x/y", "seed=0"]
    assert swept(job) == "optim.lr-1e-5_model.name-x-y_seed-0"


def test_a_secret_read_from_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    with pytest.raises(ConfigError, match=r"data\.corpus_note: .*holds the value of HF_TOKEN") as caught:
        check_config(composed("train", "data=demo", "+data.corpus_note=from ${oc.env:HF_TOKEN}"))
    assert "hf_abcdefgh" not in str(caught.value)


def test_the_path_of_a_secret_file_is_not_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_KEY_FILE", str(tmp_path))
    check_config(composed("train", f"data.release={tmp_path}"))
