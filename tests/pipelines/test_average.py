"""Averages of trained models and their mixtures with a base."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from safetensors.torch import load_file

from kikitori.adapters import layers
from kikitori.guard.recordings import OWN, STOCK
from kikitori.metrics.error_rates import ClipScore, score_clips
from kikitori.model.loading import build_whisper, load_whisper
from kikitori.model.processor import byte_tokenizer
from kikitori.model.window import FULL
from kikitori.pipelines.average import Choice, average, choose
from kikitori.pipelines.guard import guard
from kikitori.pipelines.mixing import check_alike, check_languages
from kikitori.pipelines.train import train
from kikitori.runtime.errors import ConfigError, ModelError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = [
    *(
        "experiment=demo",
        "logger=none",
        "generation.max_new_tokens=6",
        "validation.every_steps=1",
        "trainer.max_steps=1",
        "score.train_clips=3",
    ),
    *("data.limit={train: 12, validation: 4, test: 4}", "guard.clips=0", "optim.warmup_steps=0"),
]
BUCKETED = ["data.window=bucketed", "data.window_edges_s=[2]"]
SIZES = ["model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"]


def run(command: str, folder: Path, *words: str) -> dict[str, Any]:
    given = [*(SMALL if command == "train" else []), *words]
    return {"train": train, "average": average, "guard": guard}[command](composed(command, given), folder)


def scored(edits: int) -> ClipScore:
    """The score of a clip with so many wrong characters of ten."""
    (score,) = score_clips(["あ" * 10], ["あ" * (10 - edits)], "ja")
    return score


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two models that were trained from it."""
    folder = tmp_path_factory.mktemp("average")
    run("train", folder / "base", "optim.lr=1e-12", *SIZES)
    for seed in (1, 2):
        own = ["model=whisper_base", f"model.name={folder / 'base'}", f"seed={seed}", *BUCKETED]
        run("train", folder / f"{seed}", *own)
    return [folder / name for name in ("base", "1", "2")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_curve_goes_from_the_base_to_the_mean_of_the_models(runs: list[Path], tmp_path: Path) -> None:
    base, one, two = runs
    results = run("average", tmp_path / "out", f"runs=[{one},{two}]", "guard.clips=2", "alphas=[0,0.5,1]", "alpha=0.5")
    assert [row["alpha"] for row in results["curve"]] == [0, 0.5, 1]
    assert {key: results["averaged"][key] for key in ("runs", "alpha")} == {"runs": 2, "alpha": 0.5}
    for name, value in weights(tmp_path / "out").items():
        mean = (weights(one)[name].double() + weights(two)[name]) / 2
        torch.testing.assert_close(value, ((weights(base)[name] + mean) / 2).float(), rtol=1e-6, atol=1e-8)
    page = (tmp_path / "out" / "curve.html").read_text()
    assert "pink noise: characters" in page
    assert page.count('"showlegend":true') == 2
    assert "<script src" not in page
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| 0 | 0.5 | 1 |" in table
    assert "] saved |" in table
    for reading in ("own windows", "full window"):
        assert f"| validation | CER % | {reading} |" in table
        assert f"| pink noise | characters/min | {reading} |" in table
    for split in ("validation", "test"):
        for name, alpha in (("before", "0"), ("after", "0.5")):
            files = [tmp_path / "out" / "predictions" / f"{split}_{stage}.jsonl" for stage in (name, f"alpha_{alpha}")]
            assert files[0].read_text() in (
                files[1].read_text(),
                files[1].with_name(f"{files[1].stem}_in_full_window.jsonl").read_text(),
            )
    assert "mean of 2 fine-tuned models" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_the_base_and_the_tuned_model_are_the_ends(runs: list[Path], tmp_path: Path) -> None:
    base, one, _ = runs
    for alpha, end in ((0, base), (1, one)):
        run("average", tmp_path / str(alpha), f"runs=[{one}]", "guard.clips=0", "alphas=[0,1]", f"alpha={alpha}")
        assert all(torch.equal(value, weights(end)[name]) for name, value in weights(tmp_path / str(alpha)).items())


@pytest.mark.long
def test_all_readings_are_of_the_same_clips_and_the_base_reads_in_its_own_windows(
    runs: list[Path], tmp_path: Path
) -> None:
    base, one, _ = runs
    words = ["guard.clips=2", "alphas=[0,1]", "alpha=1", "score.full_window_clips=2"]
    results = run("average", tmp_path, f"runs=[{one}]", *words)
    rates = [point[key] for point in results["curve"] for key in ("scores", "full_window_scores")]
    assert {of["clips"] for splits in rates for of in splits.values()} == {2}
    assert results["scores"]["before"] == results["curve"][0]["full_window_scores"]
    alone = run("guard", tmp_path / "guard", f"checkpoint={one}", f"against={base}", "guard.clips=2")
    assert results["guard"] == alone["guard"]
    # An average names its base, too.
    assert run("guard", tmp_path / "again", f"checkpoint={tmp_path}", "guard.clips=2")["guard"] == alone["guard"]


def test_the_mixture_and_its_windows_are_those_of_the_lowest_rate() -> None:
    def choice(**rates: int) -> Choice:
        """rates: edits of the base and the tuned model, in own windows and in the full one."""
        edits = {0: {OWN: rates["a"], STOCK: rates["b"]}, 1: {OWN: rates["c"], STOCK: rates["d"]}}
        scores: Any = {
            alpha: {reading: {"validation": [scored(wrong)]} for reading, wrong in of.items()}
            for alpha, of in edits.items()
        }
        return choose({"alpha": rates.get("alpha"), "splits": ["validation"]}, scores)

    assert choice(a=9, b=3, c=2, d=4) == (1, OWN)
    assert choice(a=9, b=1, c=2, d=4) == (0, STOCK)
    assert choice(a=9, b=2, c=2, d=2) == (0, STOCK)
    assert choice(a=9, b=3, c=2, d=2) == (1, OWN)
    assert choice(a=9, b=1, c=4, d=3, alpha=1) == (1, STOCK)


@pytest.mark.parametrize("splits", [["test"], None])
def test_without_validation_the_mixture_that_is_set_reads_in_its_own_windows(splits: list[str] | None) -> None:
    scores: Any = {0: {OWN: {"test": [scored(2)]}}, 1: {OWN: {"test": [scored(3)]}, STOCK: {"test": [scored(1)]}}}
    assert choose({"alpha": 1, "splits": splits}, scores) == (1, OWN)


def test_a_mixture_that_reads_better_in_the_full_window_is_saved_with_it(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kikitori.pipelines import average as module

    monkeypatch.setattr(module, "choose", lambda config, scores: Choice(1, STOCK))
    results = run("average", tmp_path, f"runs=[{runs[1]}]", "guard.clips=2", "alphas=[0,1]")
    assert load_whisper(str(tmp_path)).processor.window == FULL
    assert load_whisper(str(runs[1])).processor.window != FULL
    assert results["averaged"] == {"runs": 1, "alpha": 1, "reading": STOCK}
    assert set(results["scores"]) == {"before", "after", "change"}
    assert results["scores"]["after"] == results["curve"][1]["full_window_scores"]
    assert "Scored with each clip padded to the full window" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.long
@pytest.mark.skipif(not layers.is_available(), reason=f"an adapter {layers.EXTRA}")
def test_an_adapter_is_merged_before_it_is_averaged(runs: list[Path], tmp_path: Path) -> None:
    words = ["model=whisper_base", f"model.name={runs[0]}", "adapter=lora", "adapter.rank=2", "optim.lr=1e-2"]
    best = run("train", tmp_path / "run", *words, "trainer.max_steps=2")["checkpoint"]["best"]
    for number, place in enumerate(("run", "run/adapter", f"run/{best}")):
        out = tmp_path / str(number)
        more = [] if number == 0 else [f"against={runs[0]}"]
        run(
            "average",
            out,
            f"runs=[{tmp_path / place}]",
            "data=demo",
            "data.limit.validation=2",
            "data.limit.test=2",
            "guard.clips=0",
            "alphas=[0,1]",
            "alpha=1",
            *more,
        )
        assert all(torch.equal(value, weights(tmp_path / "run")[name]) for name, value in weights(out).items())


def test_a_model_of_another_vocabulary_is_named() -> None:
    one, other = (build_whisper(d_model=32, encoder_layers=1, decoder_layers=1) for _ in range(2))
    other.processor = replace(other.processor, tokenizer=byte_tokenizer(1))
    with pytest.raises(ModelError, match="b has another vocabulary than a; average models that were fine-tuned from"):
        check_alike({"a": one, "b": other})


def test_a_model_of_other_languages_is_named() -> None:
    one, other = (build_whisper(d_model=32, encoder_layers=1, decoder_layers=1) for _ in range(2))
    other.set_languages(["ja", "ko"])
    with pytest.raises(ModelError, match="b was trained on ja, ko, a on ja; average models that were trained on"):
        check_languages({"a": one, "b": other})
    one.set_languages(["ko", "ja"])
    check_languages({"a": one, "b": other})


def test_what_cannot_be_averaged_is_named(runs: list[Path], tmp_path: Path) -> None:
    base, one, _ = runs
    run("train", tmp_path / "wide", *SIZES[1:], "model.d_model=64")
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"wide has a .* of shape \(.*64.*\), .* one of \(.*32.*\); average models"):
        run("average", out, f"runs=[{one},{tmp_path / 'wide'}]", "guard.clips=0")
    with pytest.raises(ConfigError, match="runs: not set; pass tuned models"):
        run("average", out)
    with pytest.raises(ConfigError, match=r"alphas: must be from 0 .* got 1\.5"):
        run("average", out, f"runs=[{one}]", "alphas=[0,1.5]")
    with pytest.raises(ConfigError, match=r"alphas: must be different numbers"):
        run("average", out, f"runs=[{one}]", "alphas=[0,0]")
    with pytest.raises(ConfigError, match=r"alphas: must be different numbers, .* in six digits"):
        run("average", out, f"runs=[{one}]", "alphas=[0,0.1234567,0.1234568]")
    with pytest.raises(ConfigError, match=r"alphas: must contain 0, the base, which the others .* got \[0\.5, 1\]"):
        run("average", out, f"runs=[{one}]", "alphas=[0.5,1]")
    with pytest.raises(ConfigError, match=r"splits: must be different ones, .* got \[\]"):
        run("average", out, f"runs=[{one}]", "splits=[]", "alpha=1")
    with pytest.raises(ConfigError, match=r"alpha: must be one of alphas=\[0, 1\], got 0\.3"):
        run("average", out, f"runs=[{one}]", "alphas=[0,1]", "alpha=0.3")
    with pytest.raises(ConfigError, match="splits: alpha=null chooses by validation; add validation, or set alpha"):
        run("average", out, f"runs=[{one}]", "splits=[test]")
    with pytest.raises(ConfigError, match="began with random weights, so it has no base"):
        run("average", out, f"runs=[{base}]")
    shutil.copytree(one / "model", tmp_path / "model")
    with pytest.raises(ConfigError, match="is no run that would name its corpus"):
        run("average", out, f"runs=[{tmp_path / 'model'}]", f"against={base}")
