"""The functions and defaults of `import kikitori`."""

import inspect
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from recordings import write_clip
from run_folders import write_run

import kikitori
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import decode
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import CONF


def test_a_file_and_its_samples_have_the_same_transcript(micro: Whisper, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "talk.flac", seconds=2.5)
    with torch.no_grad():  # large enough for the model to generate text
        for parameter in micro.model.parameters():
            parameter.mul_(8)
    micro.model.train()
    text = kikitori.transcribe(micro, path)
    assert text
    assert text == kikitori.transcribe(micro, str(path)) == kikitori.transcribe(micro, decode(path))
    assert micro.model.training
    micro.model.eval()
    assert kikitori.transcribe(micro, path) == text
    assert not micro.model.training


def test_audio_that_cannot_be_transcribed_is_named(micro: Whisper, tmp_path: Path) -> None:
    (tmp_path / "notes.mp3").write_text("no audio")
    with pytest.raises(AudioError, match=r"notes\.mp3: is in no format that can be decoded"):
        kikitori.transcribe(micro, tmp_path / "notes.mp3")
    with pytest.raises(AudioError, match=r"gone\.mp3: "):
        kikitori.transcribe(micro, tmp_path / "gone.mp3")
    with pytest.raises(ValueError, match=r"samples of shape \(samples,\), got shape \(2, 16000\)"):
        kikitori.transcribe(micro, torch.zeros(2, 16_000))


def test_score_returns_the_rates_of_a_corpus() -> None:
    rates = kikitori.score(["今日は雨です。", "赤い犬"], ["今日は雨", "赤い犬"])
    # One deleted word of two characters; the full stop counts in raw text alone.
    assert (rates["cer"], rates["cer_raw"]) == (2 / 9, 3 / 10)
    assert rates["wer"] == pytest.approx(1 / 6)
    assert rates["clips"] == 2
    low, high = rates["cer_ci95"]
    assert low <= rates["cer"] <= high
    english = kikitori.score(["I like it"], ["i like that"], language="en")
    assert english["wer"] == pytest.approx(1 / 3)


def test_score_needs_a_hypothesis_for_each_reference() -> None:
    with pytest.raises(ValueError, match="2 references, but 1 hypotheses"):
        kikitori.score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="must be lists of texts"):
        kikitori.score("今日は", "今日は")


def test_runs_are_found_in_one_place_or_several(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    names = ["a", "b"]
    for places in (tmp_path / "runs", str(tmp_path / "runs/*"), [tmp_path / "runs/a", str(tmp_path / "runs/b")]):
        runs = kikitori.find_runs(places)
        assert [run.name for run in runs] == names
        assert all(run.results["status"] == "completed" for run in runs)
    with pytest.raises(DataError, match="nowhere does not exist"):
        kikitori.find_runs("nowhere")


# Values that a command line sets and a notebook cannot: the corpus's own, and those that suit a training alone. Without
# a task, a notebook's model has its own.
NOT_DEFAULTS = {"_target_", "language", "task", "window"}


@pytest.mark.parametrize(
    ("node", "overrides"),
    [
        ("data", ["data=common_voice"]),
        ("data", ["data=demo"]),
        ("data", ["data=manifest"]),
        ("data", ["data=hub"]),
        ("optim", []),
        ("model", ["model=micro"]),
        ("model", ["model=whisper_small"]),
        ("trainer.strategy", ["trainer=ddp"]),
    ],
)
def test_constructors_have_the_defaults_of_the_configuration(node: str, overrides: Sequence[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.select(compose("train", [*overrides, "data.language=ja"]), node)
    config: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    defaults = defaults_of(getattr(kikitori, config["_target_"].removeprefix("kikitori.")))
    missing = [key for key, value in config.items() if value == "???"]
    assert all(defaults.get(key, inspect.Parameter.empty) is inspect.Parameter.empty for key in missing)
    compared = {key for key in config if key in defaults} - NOT_DEFAULTS - set(missing)
    assert compared >= {"data": {"global_batch_size", "limit"}, "optim": {"lr", "betas"}, "model": {"freeze"}}.get(
        node, {"collective_timeout_s"}
    )
    for key in compared - {"limit", "name"}:
        value = defaults[key]
        plain = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        assert plain == config[key], key
    if "limit" in compared:
        assert not any(config["limit"].values())


def defaults_of(target: Any) -> dict[str, Any]:
    """The defaults of a function, or of a class and its bases."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
    found: dict[str, Any] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            found.setdefault(name, parameter.default)
    return found


def test_the_schedule_of_the_defaults_is_that_of_the_configuration() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer, scheduler = kikitori.adamw(lr=1e-3)(model, 1000)
    # A tenth of the steps, at most 500.
    assert scheduler.lr_lambdas[0](50) == 0.5
    assert kikitori.adamw()(model, 9000)[1].lr_lambdas[0](250) == 0.5
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    endless, _ = kikitori.adamw(schedule="constant")(model, math.inf)
    assert endless.defaults["lr"] == 1e-5


IMPORT = "import kikitori, os, sys"
COMMAND = """
import os, sys
sys.argv = ["kikitori", "--version"]
from kikitori.cli.main import main
main()
"""


@pytest.mark.parametrize("program", [IMPORT, COMMAND])
@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_import_limits_the_spin_of_openmp_unless_it_is_set(
    program: str, environment: dict[str, str], expected: str
) -> None:
    code = f"{program}\nprint(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env={**clean, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == [expected, "False"]


def test_every_public_name_is_importable() -> None:
    assert set(kikitori.__all__) == set(dir(kikitori))
    for name in kikitori.__all__:
        assert getattr(kikitori, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        kikitori.nonesuch  # noqa: B018
