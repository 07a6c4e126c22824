"""What reading a configuration can do: resolvers, variables of the environment, and bombs."""

import time
from collections.abc import Iterator

import omegaconf._utils
import pytest
from omegaconf import OmegaConf
from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import InterpolationResolutionError, UnsupportedInterpolationType
from yaml import YAMLError

from kikitori.cli import limits

NEEDED = {"oc.env", "oc.select", "hydra", "now", "python_version"}
OURS = {"kikitori.help", "kikitori.or_auto", "kikitori.swept", "kikitori.tasks"}


@pytest.fixture(autouse=True)
def _limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(BaseContainer, "_resolvers", dict(BaseContainer._resolvers))
    monkeypatch.setattr(omegaconf._utils, "get_yaml_loader", limits._load)
    monkeypatch.setattr(Container, "resolve_parse_tree", limits._resolve)
    limits.limit_reading()
    limits.start_counting()
    before = time.monotonic()
    yield
    assert time.monotonic() - before < 20


def aliases(levels: int, each: int) -> str:
    """YAML in which each level is a list of aliases of the level before."""
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases(9, 9), "stands for more than 10,000 nodes"),
        (aliases(40, 2), "stands for more than 10,000 nodes|nested more than 50 deep"),
        ("a: &a {b: *a}", "nested more than 50 deep"),
        ("a: &a [*a, *a]", "nested more than 50 deep"),
        ("[" * 50_000, "nested more than 50 deep"),
        ("a: &a " + "x" * 50_000 + "\nb: [" + ", ".join(["*a"] * 900) + "]", "stands for more than 10,000 nodes"),
        ("# " + "x" * 200_000, "more than 100,000 characters"),
        ("a: [" + "1," * 20_000 + "1]", "stands for more than 10,000 nodes"),
    ],
    ids=range(8),
)
def test_a_bomb_is_refused_at_once(text: str, message: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bomb") / "bomb.yaml"
    path.write_text(text)
    with path.open(encoding="utf-8") as file, pytest.raises(YAMLError, match=message):
        OmegaConf.load(file)


@pytest.mark.parametrize("key", ["1", "1.5", "true", "no", "null", "~", "!!binary aGVsbG8="])
def test_a_key_that_is_no_text_is_named(key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    path.write_text(f"a: [{{{key}: 1}}]\n")
    with path.open(encoding="utf-8") as file, pytest.raises(YAMLError, match="not as a text; put it into quotes"):
        OmegaConf.load(file)


def test_anchors_and_merges_are_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("good") / "good.yaml"
    path.write_text("base: &base {a: 1, b: 2e-5}\nmine: {<<: *base, b: 3}\nsame: *base\n")
    with path.open(encoding="utf-8") as file:
        assert OmegaConf.load(file) == {"base": (base := {"a": 1, "b": 2e-5}), "mine": {"a": 1, "b": 3}, "same": base}


@pytest.mark.parametrize("kind", ["texts", "nodes"])
def test_a_bomb_of_interpolations_is_refused_at_once(kind: str) -> None:
    values = {"a0": "xxxxxxxx" if kind == "texts" else {"x": 1}}
    for i in range(1, 40):
        before = f"${{a{i - 1}}}"
        values |= {f"a{i}": before * 2 if kind == "texts" else {"x": before, "y": before}}  # type: ignore[dict-item]
    with pytest.raises(InterpolationResolutionError, match="stand for more than 1,000,000 characters"):
        OmegaConf.to_container(OmegaConf.create(values), resolve=True)


def test_only_the_resolvers_that_are_needed_exist() -> None:
    assert set(BaseContainer._resolvers) <= NEEDED | OURS
    for text in ("${oc.create:{a: 1}}", "${oc.decode:'{a: 1}'}", "${oc.deprecated:a}", "${oc.dict.values:a}"):
        with pytest.raises(UnsupportedInterpolationType):
            OmegaConf.to_container(OmegaConf.create({"a": {}, "x": text}), resolve=True)


@pytest.mark.parametrize("name", ["DATABASE_URL", "MY_VARIABLE", "SLURM_JWT", "WORK"])
def test_few_variables_of_the_environment_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "https://user:password@host/x" if name in ("DATABASE_URL", "WORK") else "0123456789"
    monkeypatch.setenv(name, value)
    with pytest.raises(InterpolationResolutionError) as caught:
        OmegaConf.to_container(OmegaConf.create({"x": f"a${{oc.env:{name}}}"}), resolve=True)
    assert value not in str(caught.value)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("HOME", "/home/me")
    read = {"x": "${oc.env:HOME}/${oc.env:SLURM_JOB_ID}", "y": "${oc.env:NOT_SET,default}"}
    assert OmegaConf.to_container(OmegaConf.create(read), resolve=True) == {"x": "/home/me/12", "y": "default"}
