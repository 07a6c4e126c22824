"""What reading a configuration can do: which resolvers exist, and how large files and interpolations may become."""

import os
import re
from functools import cache
from typing import Any

import omegaconf._utils
import yaml
from omegaconf import OmegaConf
from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import InterpolationResolutionError
from omegaconf.resolvers import oc
from yaml.constructor import ConstructorError

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
# Characters of all that the interpolations of one configuration stand for, each counting as at least 100.
MOST_CHARACTERS = 1_000_000


def limit_reading() -> None:
    """Applies the limits to everything that OmegaConf reads and resolves in this process."""
    for name in REMOVED:
        OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _variable, replace=True)
    omegaconf._utils.get_yaml_loader = _loader
    Container.resolve_parse_tree = _limited  # type: ignore[method-assign]


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
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        own = 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1
        counted[id(node)] = own + sum(_count(child, counted, depth + 1) for child in children)
    if counted[id(node)] > MOST_NODES:
        raise ConstructorError(None, None, f"the file stands for more than {MOST_NODES:,} nodes", where)
    return counted[id(node)]


_resolve = Container.resolve_parse_tree
_spent = [0]


def start_counting() -> None:
    """Begins to count the characters of interpolations anew, for another configuration."""
    _spent[0] = 0


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
