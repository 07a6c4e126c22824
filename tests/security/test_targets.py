"""No configuration, on the command line or in a file, can call a forbidden target: it is refused with its key."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.plugins import Plugins
from omegaconf import open_dict

from kikitori.cli import hydra_app, main
from kikitori.config import composition, targets
from kikitori.config.validation import check_config
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

# A module that leaves a trace when it is imported and when anything in it is called.
EVIL = """\
from pathlib import Path
Path("imported").touch()
def call(*args, **kwargs):
    Path("called").touch()
class Handler:
    def __init__(self, *args, **kwargs):
        Path("called").touch()
"""
TOUCH = "touch called"


def calls(target: Any, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


# Keys and values. Those below `hydra`, and those possible only in files, follow further down.
TARGETS: list[tuple[str, Any]] = [
    ("callbacks.x", calls("os.system", command=TOUCH)),
    ("callbacks.x", calls("posix.system", command=TOUCH)),
    ("callbacks.x", calls("subprocess.run", args=["touch", "called"])),
    ("callbacks.x", calls("builtins.eval", _args_=["__import__('evil')"])),
    ("callbacks.x", calls("builtins.exec", _args_=["import evil"])),
    ("callbacks.x", calls("builtins.open", file="called", mode="w")),
    ("callbacks.x", calls("io.open", file="called", mode="w")),
    ("callbacks.x", calls("os.open", path="called", flags=65)),
    ("callbacks.x", calls("os.mkdir", path="called")),
    ("callbacks.x", calls("shutil.copy", src="evil.py", dst="called")),
    ("callbacks.x", calls("pathlib.Path.touch", self=calls("pathlib.Path", _args_=["called"]))),
    ("callbacks.x", calls("importlib.import_module", name="evil")),
    ("callbacks.x", calls("runpy.run_path", path_name="evil.py")),
    ("callbacks.x", calls("functools.partial", _args_=["os.system", TOUCH])),
    ("callbacks.x", calls("hydra.utils.get_method", path="evil.call")),
    ("callbacks.x", calls("hydra.utils.get_class", path="evil.Handler")),
    ("callbacks.x", calls("hydra.utils.instantiate", config=calls("evil.call"))),
    ("callbacks.x", calls("evil.call")),
    ("callbacks.x", calls("evil.call", _partial_=True)),
    ("callbacks.x", calls("evil.call", _recursive_=False)),
    ("callbacks.x", calls("evil.Handler")),
    ("callbacks.x", calls("evil")),
    ("callbacks.x", calls("evil.absent")),
    ("callbacks.x", calls("torch.load", f="weights.pt", weights_only=False)),
    ("callbacks.x", calls("numpy.load", file="array.npy", allow_pickle=True)),
    ("callbacks.x", calls("pandas.read_pickle", filepath_or_buffer="frame.pkl")),
    # Through an allowed package, or past an allowed name.
    ("callbacks.x", calls("kikitori.runtime.paths.os.system", command=TOUCH)),
    ("callbacks.x", calls("kikitori.model.loading.torch.load", f="weights.pt")),
    ("callbacks.x", calls("kikitori.adamw.__globals__")),
    ("callbacks.x", calls("pytorch_lightning.Trainer.__init__.__globals__.get", _args_=["os"])),
    ("trainer._target_", "pytorch_lightning.Trainer.__subclasses__"),
    ("model._target_", "kikitori.model.loading.rebuild_whisper"),
    ("optim._target_", "kikitori.load_whisper"),
    ("logger.x", calls("kikitori.adamw", lr=1)),
    # Almost an allowed name.
    ("optim._target_", " kikitori.adamw"),
    ("optim._target_", "kikitori.adamw "),
    ("optim._target_", "kikitori..adamw"),
    ("optim._target_", "kikitori.adamw."),
    ("optim._target_", "kikitori:adamw"),
    ("optim._target_", "ｋikitori.adamw"),
    ("optim._target_", "kikitori.adamw\u200b"),
    ("optim._target_", ""),
    ("optim._target_", None),
    ("optim._target_", 1),
    ("optim._target_", ["kikitori.adamw"]),
    ("optim._target_", {"kikitori.adamw": 1}),
    # At any depth, and where nothing is called.
    ("trainer.plugins", [calls("evil.call")]),
    ("trainer.strategy", calls("evil.call", collective_timeout_s=1)),
    ("trainer.strategy", calls("kikitori.ddp", collective_timeout_s=calls("evil.call"))),
    ("optim.betas", [0.9, calls("evil.call")]),
    ("data.limit.train", {"a": {"b": [[calls("evil.call")]]}}),
    ("logger.x.y.z", calls("evil.call")),
    ("nowhere", calls("evil.call")),
    ("nowhere", [[{"a": calls("kikitori.adamw")}]]),
    # Options of instantiate() for an allowed target.
    ("optim._args_", [1]),
    ("optim._recursive_", False),
    ("model._convert_", "object"),
]
HYDRAS: list[tuple[str, Any]] = [
    ("hydra.callbacks.x", calls("evil.call")),
    ("hydra.callbacks.x", calls("kikitori.adamw", lr=1)),
    ("hydra.launcher._target_", "evil.Handler"),
    ("hydra.launcher.x", calls("evil.call")),
    ("hydra.launcher.x", [calls("kikitori.adamw", lr=1)]),
    ("hydra.sweeper._target_", "evil.Handler"),
    ("hydra.sweeper.x", calls("os.system", command=TOUCH)),
    ("hydra.job_logging.handlers.x.class", "evil.Handler"),
    ("hydra.job_logging.handlers.x.class", "logging.handlers.SMTPHandler"),
    ("hydra.job_logging.handlers.file.filename", "called"),
    ("hydra.job_logging.handlers.file.stream", "ext://evil.call"),
    ("hydra.job_logging.handlers.console.level", "ext://evil.call"),
    ("hydra.job_logging.formatters.x", {"class": "logging.FileHandler", "format": "called", "datefmt": "w"}),
    ("hydra.job_logging.formatters.simple.style", "{"),
    ("hydra.job_logging.filters", {"x": {"name": "evil"}}),
    ("hydra.job_logging.root.handlers", ["ext://evil.call"]),
    ("hydra.hydra_logging.handlers.x.class", "evil.Handler"),
    ("hydra.job.env_set.LD_PRELOAD", "evil.so"),
    ("hydra.job.env_copy", ["HOME"]),
    ("hydra.launcher.partition", "a\ntouch called"),
]
FILES_ONLY: list[tuple[str, Any]] = [
    ("hydra.sweeper.params", {"seed": calls("evil.call")}),
    ("callbacks.x", calls("${oc.env:EVIL}")),
    ("callbacks.x", {"_target_": "${.other}", "other": "evil.call"}),
    ("callbacks.x", "${oc.decode:'{_target_: evil.call}'}"),
    ("callbacks.x", "${oc.create:{_target_: evil.call}}"),
    ("callbacks", "${oc.decode:${oc.env:EVIL_NODE}}"),
    ("hydra.sweeper.x", "${oc.create:{_target_: evil.call}}"),
    ("hydra.launcher.setup", ["touch called"]),
    ("hydra.launcher.additional_parameters", {"wrap": "touch called"}),
    ("hydra.job_logging.handlers.x", {"()": "evil.call"}),
    ("hydra.job_logging.handlers.x", {"()": {"a": "b"}}),
    ("hydra.job_logging.handlers.file", {".": {"baseFilename": "called"}}),
    ("hydra.job_logging.handlers.x", {"class": "${oc.env:EVIL}"}),
    ("hydra.job_logging.handlers", "${oc.create:{x: {class: evil.Handler}}}"),
    ("hydra.job_logging.formatters.x", {"()": "evil.call"}),
    ("hydra.job_logging.filters.x", {"()": "evil.call"}),
    ("hydra.job_logging.loggers.x.level", "${oc.env:EVIL}"),
    ("hydra.job_logging", "${oc.create:{root: {}, version: 1}}"),
    # Escaped, for whoever resolves once more.
    *(("hydra.launcher.parallel", "\\" * n + "${oc.create:{_target_: evil.call}}") for n in (1, 3)),
    ("hydra.sweeper.params", {"seed": "\\${oc.create:{_target_: evil.call}}", "data.roots": "[/mnt]"}),
    # Folders outside of the working folder.
    *(("hydra.output_subdir", path) for path in ("/victim", "../..", "a/b", "${oc.env:HOME}", "..", "", "conf")),
    *(("hydra.job.name", name) for name in ("../../victim/app", "/victim", "${hydra.run.dir}", ".", "app")),
    ("hydra.sweep.subdir", "../victim"),
    ("hydra.sweeper.study", "/victim"),
    ("hydra.runtime.output_dir", "/victim"),
    ("hydra.launcher.submitit_folder", "/victim"),
    *(("logger.wandb.folder", path) for path in ("/victim", "reference::http://127.0.0.1:9/x", "memory://x")),
    ("callbacks.checkpoint.dirpath", "reference::http://127.0.0.1:9/x"),
    ("callbacks.x", calls("kikitori.OptunaPruning", study="/victim", name="x", trial=0)),
    # What only a person types, as if it were typed.
    ("hydra.overrides.task", ["data.roots=[/mnt]"]),
    ("hydra.overrides.hydra", ["hydra.launcher.setup=[touch called]"]),
    ("hydra.launcher.teardown", ["touch called"]),
    ("hydra.launcher", "${nowhere}"),
    ("data", "${nowhere}"),
    ("data.roots", ["/mnt"]),
    ("resume", "auto"),
    ("resume_accept", ["data"]),
    ("resume_sweep", "victim"),
]


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in a folder with the evil module, and restore global state for the next test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {"EVIL": "evil.call", "EVIL_NODE": "{x: {_target_: evil.call}}"}.items():
        monkeypatch.setenv(name, value)
    for name in ("KIKITORI_LINE", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for owner, name in ((ConfigLoaderImpl, "load_configuration"), (ConfigRepository, "initialize_sources")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    (tmp_path / "evil.py").write_text(EVIL)
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers
    sys.modules.pop("evil", None)


def refusal(*line: str) -> str:
    """Run the command and return its error, after checking that nothing was called and no run was started."""
    hydra_app.guard_hydra()
    os.environ["HYDRA_FULL_ERROR"] = ""
    options = [word for word in line if word.startswith("-") or "=" not in word]
    overrides = [word for word in line if word not in options]
    base = ["data=demo", "hydra.run.dir=run", "hydra.sweep.dir=run", "hydra/job_logging=none"]
    sys.argv[:] = ["kikitori", "train", *options, *base, *overrides]
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert not [name for name in ("imported", "called") if Path(name).exists()]
    assert not Path("run", "results.json").exists()
    assert "evil" not in sys.modules
    return str(caught.value)


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def override_syntax(value: Any) -> str:
    """Format a value in the syntax of Hydra's command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{override_syntax(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(override_syntax, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower()


def sampled(cases: list[tuple[str, Any]]) -> list[Any]:
    """Every third case; the others take a minute together, so they are `long`. `make chaos` tries all."""
    return [case if i % 3 == 0 else pytest.param(*case, marks=pytest.mark.long) for i, case in enumerate(cases)]


def write_experiment(folder: Path, key: str, value: Any) -> None:
    for part in reversed(key.split(".")):
        value = {part: value}
    path = folder / "stranger" / "experiment" / "evil.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(value), encoding="utf-8")


@pytest.mark.parametrize(("key", "value"), sampled([*TARGETS, *HYDRAS]))
def test_a_hostile_override_is_refused_and_nothing_is_called(key: str, value: Any) -> None:
    message = refusal(f"++{key}={override_syntax(value)}")
    assert key in message.replace("hydra.job.env_set", key).replace("hydra.callbacks", key)
    assert "ConfigError" in message


@pytest.mark.parametrize(("key", "value"), sampled([*TARGETS, *HYDRAS, *FILES_ONLY]))
def test_a_hostile_file_is_refused_and_nothing_is_called(tmp_path: Path, key: str, value: Any) -> None:
    write_experiment(tmp_path, key, value)
    message = refusal("--config-dir", "stranger", "experiment=evil")
    assert "ConfigError" in message or "ConfigKeyError" in message
    assert key.partition(".")[0] in message


def test_the_message_lists_what_is_allowed_there() -> None:
    message = refusal("+callbacks.x={_target_: mine.Callback}")
    assert "callbacks.x._target_: may be kikitori.OptunaPruning or pytorch_lightning.callbacks" in message
    assert "KIKITORI_TARGETS=its.full.name" in message
    assert "optim" not in message


def test_the_table_is_long_enough() -> None:
    assert len(TARGETS) >= 50


def test_the_allow_list_equals_the_targets_in_conf() -> None:
    """It also has Hydra's own alternatives: basic launcher and sweeper, and submitit on this machine."""
    named = {str(t) for path in CONF.rglob("*.yaml") for t in targets_in(yaml.safe_load(path.read_text("utf-8")))}
    listed = {name for names in targets.TARGETS.values() for name in names}
    assert named <= listed
    assert listed - named == {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "kikitori.OptunaPruning",  # written by a search
        "pytorch_lightning.callbacks.DeviceStatsMonitor",
    }


def targets_in(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
        for value in node.values():
            yield from targets_in(value)


def test_a_users_own_class_is_allowed_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pytorch_lightning.loggers.CSVLogger"
    with pytest.raises(ConfigError, match=f"_target_: may be .*got '{name}'"):
        targets.instantiate({"_target_": name}, "logger")
    monkeypatch.setenv("KIKITORI_TARGETS", f"mine.Callback,{name}")
    assert type(targets.instantiate({"_target_": name, "save_dir": "x"}, "logger")).__name__ == "CSVLogger"
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        check_config(compose("train", ["data=demo", "logger=none", f"+logger.x={{_target_: {name}, save_dir: x}}"]))


def test_a_callback_of_lightnings_that_is_wrong_here_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pytorch_lightning.callbacks.Timer"
    monkeypatch.setenv("KIKITORI_TARGETS", name)
    with pytest.raises(ConfigError, match="Timer is not supported: stop the run instead and resume it later"):
        targets.instantiate({"_target_": name}, "callbacks")


def test_a_node_can_be_instantiated_outside_its_configuration() -> None:
    strategy = {"_target_": "kikitori.ddp", "collective_timeout_s": 5}
    trainer = targets.instantiate(
        {"_target_": "pytorch_lightning.Trainer", "strategy": strategy}, "trainer", logger=False
    )
    assert type(trainer.strategy).__name__ == "Ddp"


@pytest.mark.parametrize("option", ["--experimental-rerun", "--experimental", "--e"])
@pytest.mark.parametrize("form", ["{}=config.pickle", "{} config.pickle"])
def test_a_rerun_from_a_pickle_is_refused(option: str, form: str) -> None:
    line = form.format(option).split()
    assert "load a pickle" in refusal(*line)


@pytest.mark.parametrize(
    "line", [["--config-path=pkg://evil"], ["--config-path=evil"], ["hydra.searchpath=[pkg://evil]"]]
)
def test_no_package_is_imported_to_search_for_configurations(line: list[str]) -> None:
    assert "would import a package" in refusal(*line)


def test_no_package_that_a_file_names_is_imported_either(tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "evil.yaml").write_text("defaults: [train]\nhydra: {searchpath: [pkg://evil]}\n")
    assert "would import a package" in refusal("--config-dir", "stranger", "--config-name", "evil")


def test_a_folder_of_configurations_is_read(tmp_path: Path) -> None:
    write_experiment(tmp_path, "optim.lr", -1)
    assert "optim.lr: must be above 0" in refusal("hydra.searchpath=[file://stranger]", "experiment=evil")
    assert "optim.lr: must be above 0" in refusal("--config-dir", "stranger", "experiment=evil")


@pytest.mark.parametrize("name", ["/../outside/x", "../../outside/x", "/experiment/link", "/folder/x"])
def test_no_file_outside_of_the_folders_of_configurations_is_read(tmp_path: Path, name: str) -> None:
    """Its values could be sent to a server with those of the run."""
    write_experiment(tmp_path, "defaults", [name])
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.yaml").write_text("a: 1\n")
    (tmp_path / "stranger" / "folder").symlink_to("../outside")
    (tmp_path / "stranger" / "experiment" / "link.yaml").symlink_to(tmp_path / "outside" / "x.yaml")
    assert re.search("leads out of", refusal("--config-dir", "stranger", "experiment=evil"))


def test_a_folder_of_configurations_may_be_a_link_and_have_links_of_its_own(tmp_path: Path) -> None:
    write_experiment(tmp_path, "optim.lr", -1)
    (tmp_path / "stranger" / "experiment" / "link.yaml").symlink_to("evil.yaml")
    (tmp_path / "mine").symlink_to("stranger")
    assert "optim.lr: must be above 0" in refusal("--config-dir", "mine", "experiment=link")


def test_a_bomb_of_defaults_lists_is_refused(tmp_path: Path) -> None:
    write_experiment(tmp_path, "defaults", [{"/bomb@x": "0"}])
    (tmp_path / "stranger" / "bomb").mkdir()
    for level in range(14):
        text = f"defaults: [{{/bomb@l: '{level + 1}'}}, {{/bomb@r: '{level + 1}'}}]\n" if level < 13 else "a: 1\n"
        (tmp_path / "stranger" / "bomb" / f"{level}.yaml").write_text(text)
    assert "read files more than 300 times" in refusal("--config-dir", "stranger", "experiment=evil")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1".encode("utf-16"), r"experiment/evil\.yaml cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (b"seed: 1\0", r"experiment/evil\.yaml cannot be read: unacceptable character #x0000"),
        (b"5", r"experiment/evil\.yaml cannot be read: Invalid loaded object type: int"),
        (b"seed: " + b"9" * 5000, r"experiment/evil\.yaml cannot be read: Exceeds the limit"),
        (b"optim.lr: 1", r"optim\.lr: in a file, keys are nested: optim: {lr: \.\.\.}"),
        (b"defaults: [{override /model: null}]", "model: must be a mapping with a _target_; choose model=... from"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    write_experiment(tmp_path, "seed", 0)
    (tmp_path / "stranger" / "experiment" / "evil.yaml").write_bytes(
        b"# @package _global_\n" * (text[:1] != b"\xff") + text
    )
    assert re.search(message, refusal("--config-dir", "stranger", "experiment=evil"))


@pytest.mark.parametrize("node", ["launcher", "sweeper"])
def test_a_sweep_needs_its_launcher_and_sweeper(node: str) -> None:
    assert f"hydra.{node}: must be a mapping with a _target_" in refusal("-m", f"hydra.{node}=null", "seed=0,1")


@pytest.mark.parametrize("params", [{"a b": "1,2"}, {"seed": "9" * 5000 + ",1"}, {"seed": "{"}])
def test_an_axis_of_a_file_that_cannot_be_read_is_named(tmp_path: Path, params: dict[str, str]) -> None:
    write_experiment(tmp_path, "hydra", {"mode": "MULTIRUN", "sweeper": {"params": params}})
    assert "cannot be read" in refusal("--config-dir", "stranger", "experiment=evil")


@pytest.mark.parametrize("word", ["+optim={1:x}", "+data.limit={true:1}", "data.window_edges_s=[{1.5:x}]"])
def test_a_key_of_the_command_line_that_is_no_text_is_named(word: str) -> None:
    assert "is not a text; give it another name" in refusal(word)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:evil.call", "!!python/module:evil"])
def test_yaml_tags_construct_no_objects(tmp_path: Path, tag: str) -> None:
    write_experiment(tmp_path, "seed", 0)
    path = tmp_path / "stranger" / "experiment" / "evil.yaml"
    path.write_text(f"# @package _global_\nseed: {tag} [touch called]\n")
    assert "evil.yaml" in refusal("--config-dir", "stranger", "experiment=evil")


def composed(*line: str) -> Any:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("train", ["data=demo", *line], return_hydra_config=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+hydra.launcher.setup=[module load cuda]", r"hydra\.launcher\.setup: runs commands, which a configuration"),
        ("+hydra.launcher.teardown=[touch x]", r"hydra\.launcher\.teardown: runs commands"),
        ("+hydra.launcher.additional_parameters={wrap: touch x}", r"additional_parameters\.wrap: runs commands"),
        ("hydra.launcher.submitit_folder=/etc", r"hydra\.launcher\.submitit_folder: must be a folder below"),
    ],
)
def test_only_the_command_line_may_set_what_a_slurm_job_runs(word: str, message: str) -> None:
    cfg = composed("hydra/launcher=slurm", word)
    words = [*cfg.hydra.overrides.task, *cfg.hydra.overrides.hydra]
    composition.check(cfg, words)
    cfg.hydra.overrides.hydra.remove(word)
    words.remove(word)
    with pytest.raises(ConfigError, match=message):
        composition.check(cfg, words)


@pytest.mark.parametrize("key", ["partition", "name", "qos", "exclusive", "submitit_folder", "mail_user"])
@pytest.mark.parametrize("value", ["a\ntouch called", """a\\' " --export=ALL,LD_PRELOAD=x.so #""", "a\0"])
def test_a_setting_of_a_slurm_job_is_one_line(key: str, value: str) -> None:
    """sbatch reads a backslash as an escape also where a shell does not, and would take what follows for options."""
    cfg = composed("hydra/launcher=slurm")
    with open_dict(cfg):
        cfg.hydra.launcher[key] = value
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{key}: must be a text of one line"):
        composition.check(cfg, [*cfg.hydra.overrides.task, *cfg.hydra.overrides.hydra])


def test_what_a_sweeps_folder_holds_is_not_taken_for_the_result_of_a_slurm_job() -> None:
    """submitit loads results of jobs as pickles, by the number of the job, which can be guessed."""
    hydra_app.guard_hydra()
    nodes = [composed("hydra/launcher=slurm", "hydra.sweep.dir=sweep").hydra.launcher for _ in range(2)]
    folders = {Path(Plugins.instance()._instantiate(node).params["submitit_folder"]) for node in nodes}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {Path("sweep/.submitit/%j")}


def test_only_the_command_line_may_open_folders_outside_of_a_corpus() -> None:
    cfg = composed("data.roots=[/mnt]")
    composition.check(cfg, ["data=demo", "data.roots=[/mnt]"])
    cfg.hydra.overrides.task = ["data=demo"]
    with pytest.raises(ConfigError, match=r"data\.roots: opens folders outside of the corpus, which no file may do"):
        composition.check(cfg, ["data=demo"])
    cfg.data.roots = None
    composition.check(cfg, ["data=demo"])


@pytest.mark.parametrize("key", ["noise_folder", "room_folder"])
def test_a_file_names_recordings_below_the_working_folder_only(key: str) -> None:
    """Of noise and rooms: what a training reads of this machine, a person decides."""
    cfg, typed = composed(), f"augment.{key}=/mnt/private"
    for folder in ("/mnt/private", "~/private", "../private", "a/../../private", "${oc.env:HOME}"):
        cfg.augment[key] = folder
        with pytest.raises(ConfigError, match=rf"augment\.{key}: must be a folder below the working folder"):
            composition.check(cfg, ["data=demo"])
    cfg.augment[key] = "sounds/here"
    composition.check(cfg, ["data=demo"])
    given = composed(typed)
    composition.check(given, ["data=demo", typed])


def test_a_file_names_a_folder_of_the_run_only_when_it_is_resumed(tmp_path: Path) -> None:
    """Its record names the working folder and the file."""
    write_experiment(tmp_path, "logger.x", calls("pytorch_lightning.loggers.CSVLogger", save_dir="models"))
    record = {"command": "train", "status": "failed", "cwd": str(tmp_path), "scores": {}, "config": {}}
    record |= {"options": ["--config-dir", "stranger"], "overrides": ["data=demo", "experiment=evil"]}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "results.json").write_text(json.dumps(record), encoding="utf-8")
    hydra_app.guard_hydra()
    os.environ["HYDRA_FULL_ERROR"] = ""
    sys.argv[:] = ["kikitori", "train", "resume=theirs", "hydra/job_logging=none"]
    with pytest.raises(SystemExit, match=r"logger\.x\.save_dir: must be a folder of the run that is resumed"):
        main.main()
    assert not Path("models").exists()


@pytest.mark.parametrize("logger", ["wandb", "tensorboard", "both"])
@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_our_own_choices_of_folders_are_resumed(logger: str, sweeper: str) -> None:
    words = ["data=demo", f"logger={logger}", f"hydra/sweeper={sweeper}", "resume=auto"]
    composition.check(composed(*words[1:]), words)


@pytest.mark.parametrize("key", ["run", "sweep"])
@pytest.mark.parametrize(
    "path",
    [
        "/victim",
        "~/x",
        "a/../../b",
        "${now:/victim}",
        "${now:.%Z.}/x",
        "${now:.%p./x}",
        ".${now:.}/x",
        "${oc.select:hydra.job.num,/victim}",
        "file://x",
    ],
)
def test_a_file_names_no_folder_outside_of_the_working_folder(key: str, path: str) -> None:
    cfg = composed()
    composition.check(cfg, ["data=demo"])
    cfg.hydra[key].dir = "runs/${now:%H-%M}/${hydra:job.name}..x"
    composition.check(cfg, ["data=demo"])
    cfg.hydra[key].dir = path
    with pytest.raises(ConfigError, match=rf"hydra\.{key}\.dir: must be a folder below the working folder"):
        composition.check(cfg, ["data=demo"])


@pytest.mark.parametrize(
    "params",
    [
        {"data.roots": "[/mnt]"},
        {"++data.roots": "[/mnt]"},
        {"data.roots@_global_": "[/mnt]"},
        {"data.roots": "extend_list(/mnt)"},
        {"+data": "shuffle({roots: [/a]},{roots: [/b]})"},
        {"data": "{roots: [/mnt]}"},
        {"+data": "{limit: {train: 4}, roots: [/mnt]},{limit: {train: 5}}"},
        {"hydra.launcher.setup": "[touch x]"},
        {"data": "${note}"},
    ],
)
def test_axes_of_a_sweep_in_a_file_set_nothing_that_only_a_person_may(params: dict[str, str]) -> None:
    cfg = composed("hydra.mode=MULTIRUN")
    with open_dict(cfg):
        cfg.note = "{roots: [/mnt]}"
        cfg.hydra.sweeper.params = params
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params\.(data\.roots|hydra\.launcher\.setup)"):
        composition.check(cfg, ["data=demo", "hydra.mode=MULTIRUN"])


@pytest.mark.parametrize("key", ["hydra.run.dir", "data.name", "hydra.sweep.dir"])
def test_an_interpolation_cannot_read_a_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789")
    message = refusal(*(["-m"] if "sweep" in key else []), f"++{key}=a-${{oc.env:MY_TOKEN}}-b")
    assert "holds the value of MY_TOKEN" in message
    assert "canary" not in message
    assert not list(Path().rglob("*canary*"))


def test_a_typed_secret_with_an_equals_sign_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789==")
    assert refusal("canary-0123456789==").startswith("kikitori: *** holds the value of MY_TOKEN")


@pytest.mark.parametrize("key", ["data.name", "hydra.sweep.subdir", "nowhere.deep"])
def test_a_secret_in_a_file_is_refused_before_it_is_written_elsewhere(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789")
    write_experiment(tmp_path, key, "a-canary-0123456789-b")
    message = refusal("--config-dir", "stranger", "experiment=evil")
    assert f"{key}: holds the value of MY_TOKEN" in message
    assert "canary" not in message
    assert not Path("run").exists()
