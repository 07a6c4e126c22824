"""The table of arguments covers the real signatures, so that a new argument of a library is refused, not ignored."""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra.utils import get_object

from kikitori.config.arguments import ARGUMENTS, CALLBACKS, REQUIRED, at_least, describe, fits, instead, of_type, one_of
from kikitori.config.targets import TARGETS, faults

# Arguments that these take as keywords: of torch's SummaryWriter and of submitit's executor.
KEYWORDS = {"TensorBoardLogger": {"comment", "filename_suffix", "max_queue", "flush_secs", "purge_step"}}


def signature(target: str) -> set[str]:
    """The names of the arguments that a class takes."""
    make: Any = get_object(target)
    names = {
        name
        for name, parameter in inspect.signature(make.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    return names | KEYWORDS.get(make.__name__, set())


def submitit_arguments(target: str) -> set[str]:
    config: Any = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    slurm: Any = pytest.importorskip("submitit.slurm.slurm")
    is_slurm = "Slurm" in target
    fields = {field.name for field in dataclasses.fields(config.SlurmQueueConf if is_slurm else config.LocalQueueConf)}
    executor = {*slurm._get_default_parameters(), "python"} if is_slurm else set()
    return (fields | executor) - {"_target_"}


@pytest.mark.parametrize("target", ARGUMENTS)
def test_the_table_has_every_argument_of_a_class_and_no_other(target: str) -> None:
    names = submitit_arguments(target) if "submitit" in target else signature(target)
    assert set(ARGUMENTS[target]) == names


def test_every_class_of_a_library_that_a_configuration_may_name_is_in_the_table() -> None:
    named = {target for targets in TARGETS.values() for target in targets}
    assert {target for target in named if not target.startswith("kikitori.")} == set(ARGUMENTS)


def test_every_callback_of_lightnings_is_used_or_refused_with_a_reason() -> None:
    # Base classes, and one whose arguments are functions, are no callbacks to configure.
    abstract = {"Callback", "Checkpoint", "BaseFinetuning", "BasePredictionWriter", "ProgressBar", "LambdaCallback"}
    used = {target.rpartition(".")[2] for target in ARGUMENTS if target.startswith("pytorch_lightning.callbacks.")}
    assert set(pl.callbacks.__all__) == used | set(CALLBACKS) | abstract


def refused() -> Iterator[tuple[str, str, str]]:
    for target, rules in ARGUMENTS.items():
        yield from ((target, name, rule.otherwise) for name, rule in rules.items() if rule.is_replaced)


@pytest.mark.parametrize(("target", "name", "remedy"), refused())
def test_an_argument_without_its_effect_is_refused_with_what_to_use_instead(
    target: str, name: str, remedy: str
) -> None:
    place = next(place for place, names in TARGETS.items() if target in names)
    found = dict(faults({"_target_": target, name: "odd"}, place))
    assert found.pop(f"{place}.{name}") == remedy
    assert found == dict(faults({"_target_": target, name: None}, place))
    assert found.keys() == {f"{place}.{required}" for required in REQUIRED.get(target, ())}


@pytest.mark.parametrize(
    ("target", "name", "key"),
    [
        ("pytorch_lightning.Trainer", "gpus", "trainer.devices"),
        ("pytorch_lightning.Trainer", "resume_from_checkpoint", "resume"),
        ("hydra_plugins.kikitori_plugins.OptunaSweeper", "n_jobs", "hydra.launcher.parallel"),
    ],
)
def test_an_argument_by_the_name_of_another_tool_is_answered_with_the_key(target: str, name: str, key: str) -> None:
    place = next(place for place, names in TARGETS.items() if target in names)
    assert dict(faults({"_target_": target, name: 2}, place))[f"{place}.{name}"] == f"set {key}"


@pytest.mark.parametrize("path", ["/x", "~/x", "../x", "a/../../x", "memory://x", "reference::http://x"])
def test_tensorboard_writes_below_its_folder_on_this_machine(path: str) -> None:
    node = {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "save_dir": "runs"}
    for name in ("name", "sub_dir", "version", "filename_suffix"):
        assert f"logger.{name}" in dict(faults({**node, name: path}, "logger"))
        assert not dict(faults({**node, name: "a/b.c"}, "logger"))
    assert ("logger.save_dir" in dict(faults({**node, "save_dir": path}, "logger"))) == (":" in path)


def test_an_argument_of_another_version_is_refused() -> None:
    node = {"_target_": "pytorch_lightning.Trainer", "brand_new": 1, "max_step": 3}
    assert dict(faults(node, "trainer")) == {
        "trainer.brand_new": (
            "pytorch_lightning.Trainer has no such argument, or kikitori does not support it; there are accelerator, "
            "devices, num_nodes, strategy, precision, max_steps, max_epochs, gradient_clip_val, log_every_n_steps, "
            "deterministic, benchmark, detect_anomaly, inference_mode, profiler"
        ),
        "trainer.max_step": (
            "pytorch_lightning.Trainer has no such argument, or kikitori does not support it; did you mean max_steps?"
        ),
    }


SWEEPER = "hydra_plugins.kikitori_plugins.OptunaSweeper"
TRAINER, CHECKPOINT = "pytorch_lightning.Trainer", "pytorch_lightning.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    ("target", "name", "values"),
    [
        (TRAINER, "strategy", ["auto", "ddp", {"_target_": "kikitori.ddp"}]),
        (TRAINER, "precision", [32, "32", "16-mixed", "auto"]),
        (TRAINER, "devices", [1, 8, "auto"]),
        (TRAINER, "deterministic", [True, False, "warn", None]),
        (TRAINER, "log_every_n_steps", [0, 1]),
        (TRAINER, "limit_train_batches", [1.0, None]),
        (TRAINER, "fast_dev_run", [False]),
        (CHECKPOINT, "save_top_k", [-1, 1, 3]),
        (CHECKPOINT, "every_n_epochs", [1, None]),
        (SWEEPER, "pruner", [None, {"_target_": "optuna.pruners.HyperbandPruner"}]),
    ],
)
def test_a_value_that_means_what_the_library_says_is_accepted(target: str, name: str, values: list[Any]) -> None:
    assert all(ARGUMENTS[target][name].accepts(value) for value in values)


@pytest.mark.parametrize(
    ("target", "name", "values"),
    [
        (TRAINER, "strategy", ["fsdp", "deepspeed_stage_2", "ddp_spawn", "ddp_notebook", {"_target_": "other"}, None]),
        (TRAINER, "precision", [16, "bf16", "bf16-true", None, True]),
        (TRAINER, "devices", [0, -1, "2", [0], True]),
        (TRAINER, "max_steps", [0, -1, 1.5, True, "3"]),
        (TRAINER, "limit_train_batches", [1, 2, 0.5, 0, True]),
        (TRAINER, "fast_dev_run", [True, 3]),
        (TRAINER, "profiler", ["pytorch", 1]),
        (CHECKPOINT, "save_top_k", [0, -2, True, None]),
        (CHECKPOINT, "monitor", [None, "train/loss"]),
        (CHECKPOINT, "mode", ["max", None]),
        (SWEEPER, "pruner", [{"min_resource": 3}, "hyperband"]),
        (SWEEPER, "sampler", [{"seed": 3}, "tpe", None]),
        ("optuna.pruners.SuccessiveHalvingPruner", "min_early_stopping_rate", [-1, 21, 10**12, True]),
    ],
)
def test_any_other_value_is_refused(target: str, name: str, values: list[Any]) -> None:
    rule = ARGUMENTS[target][name]
    assert [value for value in values if rule.accepts(value)] == []
    assert all(rule.fault(value) for value in values)


def test_a_fault_names_the_value_before_the_remedy() -> None:
    assert one_of("a", None, because="; use b").fault(3) == "must be a or null, got 3; use b"
    assert at_least(2, optional=True).fault("x") == "must be a whole number of at least 2 or null, got 'x'"
    assert of_type(bool | None).fault(1) == "must be true or false or null, got 1"
    assert instead("set b").fault(1) == "set b"


def test_true_is_no_number() -> None:
    assert not fits(True, int)
    assert not fits(1, bool)
    assert not one_of(1, 2).accepts(True)
    assert not instead("x", 1.0, 0).accepts(True)
    assert describe(list[str] | None) == "a list of texts or null"
    assert describe(Sequence[float]) == "a list of numbers"
    assert describe(tuple[float, float]) == "a list of 2 numbers"
    assert describe(list[Any]) == "a list"
    assert describe(float | int) == "a number"
