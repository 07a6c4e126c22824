"""Generated hostile files of a configuration: whatever they hold, no name outside of the list is resolved.

Each file has one to four hostile values at random keys and depths: names that must not be called, with partials and
other instructions; interpolations that build, decode or read, escaped any number of times; aliases and merges of these.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kikitori.cli import hydra_app
from kikitori.config import targets
from kikitori.config.overrides import leaves, to_plain
from kikitori.config.validation import check_config
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

REFUSED = (ConfigError, HydraException, OmegaConfBaseException, yaml.YAMLError)
LISTED = {name for names in targets.TARGETS.values() for name in names}
NAMES = [
    *("evil.call", "os.mkdir", "os.system", "builtins.eval", "functools.partial", "hydra.utils.instantiate"),
    *("kikitori.runtime.paths.os.mkdir", "kikitori.adamw.__globals__", "kikitori.adamw ", "pytorch_lightning.Trainer"),
    *("optuna.samplers.TPESampler", "pytorch_lightning.callbacks.EarlyStopping", "kikitori.load_whisper"),
    *("${oc.env:EVIL}", "${.name}", "${hydra.job.name}", "\\${x}", "", None, 1, ["evil.call"], {"evil.call": 1}),
]
NODE = "{_target_: os.mkdir, path: PWN}"
CALLS = [
    f"oc.create:{NODE}",
    f"oc.decode:'{NODE}'",
    "oc.decode:${oc.env:EVIL_NODE}",
    "oc.env:EVIL",
    f"oc.select:nothing,'{NODE}'",
    "oc.select:hydra.launcher",
    "oc.dict.values:hydra.job",
    "oc.deprecated:seed",
    f"kikitori.swept:['{NODE}']",
    f"kikitori.or_auto:{NODE}",
    "now:../../%H",
    "hydra:job",
    "evil",
    "evil.more",
]
INSTRUCTIONS = {
    "_partial_": [True, "${oc.create:true}"],
    "_recursive_": [False],
    "_convert_": ["object"],
    "_args_": [["PWN"]],
}


def text(chance: random.Random) -> str:
    """An interpolation, escaped up to five times, alone or in a text."""
    escapes = "\\" * chance.randrange(6)
    return chance.choice(["", "a"]) + escapes + "${" + chance.choice(CALLS) + "}" + chance.choice(["", "${seed}"])


def node(chance: random.Random, depth: int = 0) -> Any:
    """A hostile value: a text, or a mapping or list of hostile values with a name to call."""
    kind = chance.randrange(4 if depth < 3 else 1)
    if kind == 0:
        return text(chance)
    if kind == 1:
        return [node(chance, depth + 1) for _ in range(chance.randint(1, 2))]
    value = {"_target_": chance.choice(NAMES), "path": "PWN", "name": "evil.call"}
    for name, values in INSTRUCTIONS.items():
        if chance.random() < 0.2:
            value[name] = chance.choice(values)
    return value | {"more": node(chance, depth + 1)} if kind == 3 else value


def hostile_file(chance: random.Random, keys: list[str]) -> str:
    """YAML whose hostile values are at keys of the configuration, or at new ones below these; some are aliases."""
    root: dict[str, Any] = {"evil": node(chance)} if chance.random() < 0.5 else {}
    root["hydra"] = {"mode": chance.choice(["RUN", "MULTIRUN"])}
    shared = node(chance)
    for _ in range(chance.randint(1, 4)):
        parts = chance.choice(keys).split(".")[: chance.randint(1, 5)] + ["new"] * (chance.random() < 0.2)
        parent = root
        for part in parts[:-1]:
            below = parent.get(part)
            parent[part] = parent = below if isinstance(below, dict) else {}
        parent[parts[-1]] = chance.choice([shared, shared, node(chance)])
    return "# @package _global_\n" + yaml.safe_dump(root)


@pytest.fixture
def resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that were resolved. Nothing that was built is a real object, and Hydra's `instantiate` is not used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('PWN')\ndef call(*_, **__): os.mkdir('PWN')\n")
    monkeypatch.setenv("EVIL", "evil.call")
    monkeypatch.setenv("EVIL_NODE", NODE)
    for owner, name in (
        (ConfigLoaderImpl, "load_configuration"),
        (ConfigRepository, "initialize_sources"),
        (Plugins, "_instantiate"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    hydra_app.guard_hydra()
    names: list[str] = []
    original = targets.get_object

    def get_object(name: str) -> Any:
        names.append(name)
        return original(name)

    monkeypatch.setattr(targets, "get_object", get_object)
    monkeypatch.setattr("hydra._internal.instantiate._instantiate2.instantiate_node", None)
    yield names
    assert "evil" not in sys.modules
    assert not list(tmp_path.rglob("PWN*"))


def values(path: Path) -> dict[str, Any]:
    """The plain values of a configuration with this file as its experiment, Hydra's launcher and sweeper included."""
    words = ["data=demo", f"hydra.searchpath=[file://{path.parents[1]}]", f"experiment={path.stem}"]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("train", words, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir, cfg.hydra.job.num = "run", 0
    HydraConfig.instance().set_config(cfg)
    plugins = {name: to_plain(cfg.hydra[name]) for name in ("launcher", "sweeper")}
    with open_dict(cfg):
        del cfg["hydra"]
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    return {**plain, "hydra": plugins}


def build(config: dict[str, Any]) -> Iterator[None]:
    """Builds what a run builds, one node after the other; each may be refused."""
    groups = [(group, node) for group in ("callbacks", "logger") for node in dict(config[group] or {}).values()]
    plugins = [(f"hydra.{name}", config["hydra"][name]) for name in ("launcher", "sweeper")]
    for place, node in [*groups, *plugins, *((name, config[name]) for name in ("data", "model", "optim", "trainer"))]:
        if isinstance(node, dict):
            with suppress(ConfigError):
                targets.instantiate(node, place)
                yield


def attack(count: int, seed: int, folder: Path, resolved: list[str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Reads `count` files. What the first check lets pass meets the second one and, whatever that says, the builder."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("train", ["data=demo"], return_hydra_config=True))
    keys, passed = [key for key, _ in leaves(plain)], Counter[str]()
    keys += 3 * [key for key in keys if not key.startswith("hydra.")]
    path = folder / "stranger" / "experiment" / "evil.yaml"
    path.parent.mkdir(parents=True)
    known = targets.get_object
    for number in range(count):
        path.write_text(hostile_file(random.Random(seed + number), keys), encoding="utf-8")
        with suppress(*REFUSED):
            config = values(path)
            passed["composed"] += 1
            with monkeypatch.context() as patch:
                patch.setattr(targets, "get_object", lambda name: (known(name), dict)[1])
                passed["built"] += sum(1 for _ in build(config))
            check_config({key: value for key, value in config.items() if key != "hydra"})
            passed["checked"] += 1
        assert set(resolved) <= LISTED, path.read_text(encoding="utf-8")
        HydraConfig.instance().cfg = None
    return passed


def test_a_few_hostile_files_resolve_no_name_outside_of_the_list(
    tmp_path: Path, resolved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attack(24, 0, tmp_path, resolved, monkeypatch)["composed"]


@pytest.mark.long
def test_hostile_files_resolve_no_name_outside_of_the_list(
    tmp_path: Path, resolved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = attack(1000, 1000, tmp_path, resolved, monkeypatch)
    assert passed["composed"] > 100
    assert passed["built"] > 500
    assert "kikitori.adamw" in resolved


def test_texts_that_look_like_interpolations_are_passed_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Callable[..., Any] = lambda **arguments: arguments  # noqa: E731
    monkeypatch.setattr(targets, "get_object", lambda name: stub)
    for escapes in range(6):
        hostile = "\\" * escapes + "${oc.create:" + NODE + "}"
        node = {"_target_": "kikitori.WandbRunLogger", "notes": hostile, "tags": [hostile, {"a": hostile}]}
        built = targets.instantiate(node, "logger")
        assert built == {"notes": hostile, "tags": [hostile, {"a": hostile}]}
