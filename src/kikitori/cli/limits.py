"""What reading a configuration can do: which resolvers exist, and how large files and interpolations may become."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import omegaconf._utils
import yaml
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import InterpolationResolutionError
from omegaconf.resolvers import oc
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from kikitori.runtime.errors import ConfigError, one_line
from kikitori.runtime.paths import CONF
from kikitori.runtime.text import secret_fault

# OmegaConf's resolvers that conf/ does not need: they build nodes and read texts as configurations.
REMOVED = ("oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
# The variables of the environment that ${oc.env:NAME} may read.
VARIABLES = re.compile(
    r"HOME|USER|LOGNAME|HOSTNAME|PWD|TMPDIR|SCRATCH|WORK|CUDA_VISIBLE_DEVICES|SLURM_\w+|KIKITORI_CACHE"
)
# Characters of a YAML file. Nodes of it, where an alias counts as much as what it stands for, and 100 characters of a
# text as one more node; and how deep they may be nested.
MOST_OF_FILE = 100_000
MOST_NODES = 10_000
DEEPEST = 50
# How often files are read for one configuration, each about three times.
MOST_READS = 300
# Tags of keys: a text, and <<.
OF_KEYS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
# Characters of all that the interpolations of one configuration stand for, each counting as at least 100.
MOST_CHARACTERS = 1_000_000


def limit_reading() -> None:
    """Applies the limits to everything that OmegaConf reads and resolves in this process."""
    for name in REMOVED:
        OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _variable, replace=True)
    omegaconf._utils.get_yaml_loader = _loader
    Container.resolve_parse_tree = _limited  # type: ignore[method-assign]
    CachingConfigRepository.load_config = _count_read
    ConfigRepository.load_config = _read_file


def _variable(name: str, *default: Any) -> Any:
    """The resolver ${oc.env:NAME,default}."""
    value: Any = oc.env(name, *default)
    if fault := secret_fault(os.environ.get(name, "")):
        raise InterpolationResolutionError(fault)
    if name in os.environ and not VARIABLES.fullmatch(name):
        raise InterpolationResolutionError(f"a configuration may not read the variable {name}; type it: key=${name}")
    return value


_load = omegaconf._utils.get_yaml_loader


@cache
def _loader() -> Any:
    class Limited(_load()):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            text = stream if isinstance(stream, str) else stream.read(MOST_OF_FILE + 1)
            if len(text) > MOST_OF_FILE:
                raise ConstructorError(None, None, f"the file has more than {MOST_OF_FILE:,} characters")
            super().__init__(text)
            self.name = getattr(stream, "name", "<text>")

        def get_single_node(self) -> Any:
            try:
                node = super().get_single_node()
            except RecursionError:
                raise ConstructorError(None, None, f"nodes are nested more than {DEEPEST} deep") from None
            _count(node, {}, 0)
            return node

    return Limited


def _count(node: yaml.Node | None, counted: dict[int, int], depth: int) -> int:
    """The nodes that a YAML node stands for. Raises ConstructorError if they are too many, or too deep."""
    where = getattr(node, "start_mark", None)
    if depth > DEEPEST:
        raise ConstructorError(None, None, f"nodes are nested more than {DEEPEST} deep", where)
    if id(node) not in counted:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        for key in (part[0] for part in parts if isinstance(part, tuple)):
            if isinstance(key, yaml.ScalarNode) and key.tag not in OF_KEYS:
                kind = key.tag.rpartition(":")[2]
                fault = f"the key {key.value} is read as {kind}, not as a text; put it into quotes"
                raise ConstructorError(None, None, fault, key.start_mark)
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        own = 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1
        counted[id(node)] = own + sum(_count(child, counted, depth + 1) for child in children)
    if counted[id(node)] > MOST_NODES:
        raise ConstructorError(None, None, f"the file stands for more than {MOST_NODES:,} nodes", where)
    return counted[id(node)]


_read_once, _read = CachingConfigRepository.load_config, ConfigRepository.load_config
_resolve = Container.resolve_parse_tree
_spent = [0]


def start_counting() -> None:
    """Begins to count the characters of interpolations anew, for another configuration."""
    _spent[0] = 0


def _count_read(self: CachingConfigRepository, config_path: str) -> ConfigResult | None:
    """Hydra makes such a repository for each configuration."""
    vars(self)["reads"] = reads = vars(self).get("reads", 0) + 1
    if reads > MOST_READS:
        raise ConfigError(
            f"the defaults lists of the configuration read files more than {MOST_READS} times; name fewer"
        )
    return _read_once(self, config_path)


def _read_file(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Reads a file of a folder of configurations, and of no other one: that of a stranger may have links."""
    if os.path.normpath(config_path).startswith(("..", "/")):
        raise ConfigError(f"{config_path} leads out of the folders of configurations; name its own with --config-dir")
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    name = os.path.join(source.path, f"{config_path.removesuffix('.yaml')}.yaml") if source else config_path
    if source and source.scheme() == "file":
        folder = Path(source.path).resolve()
        if folder != CONF.resolve() and not Path(name).resolve().is_relative_to(folder):
            raise ConfigError(f"{name} is a link that leads out of {folder}; put a copy there")
    try:
        return _read(self, config_path)
    except (ValueError, OSError, ReaderError) as error:
        raise ConfigError(f"{name} cannot be read: {one_line(error)}") from error


def _limited(self: Container, *arguments: Any, **more: Any) -> Any:
    found = _resolve(self, *arguments, **more)
    _spent[0] += 100 + _size(found)
    if _spent[0] > MOST_CHARACTERS:
        raise InterpolationResolutionError(f"interpolations stand for more than {MOST_CHARACTERS:,} characters")
    return found


def _size(node: Any) -> int:
    content = node._value() if isinstance(node, BaseContainer) else node
    if isinstance(content, dict):
        return 1 + sum(map(_size, content.values()))
    return 1 + sum(map(_size, content)) if isinstance(content, list) else 1 + len(str(content))
