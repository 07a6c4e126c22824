"""A training that is resumed with other settings: longer, on other clips, or with more patience."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed

from kikitori.pipelines.train import train
from kikitori.runtime.errors import ConfigError, TrainingError
from kikitori.runtime.files import read_json, read_lines, write_json
from kikitori.training import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "logger=none",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
    ),
    *("model.dropout=0.1", "generation.max_new_tokens=6", "validation.every_steps=3", "score.train_clips=3"),
    *("data.limit={train: 24, validation: 6, test: 4}", "callbacks.checkpoint.monitor=val/loss"),
    *("optim.schedule=constant", "optim.warmup_steps=0"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, *words: str) -> dict[str, Any]:
    return train(composed("train", [*SMALL, *words]), folder)


def last(folder: Path) -> dict[str, Any]:
    return checkpoints.read_checkpoint(folder / "checkpoints/last.ckpt")


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return all(map(is_same, one, other)) if isinstance(one, list | tuple) else one == other


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run of six steps, given as two epochs."""
    folder = tmp_path_factory.mktemp("completed")
    torch.set_num_threads(1)
    results = run(folder / "run", "trainer.max_epochs=2")
    assert results["training"] == {"steps": 6, "steps_per_epoch": 3, "every_steps": 3, "epochs": 2.0}
    assert results["config"]["trainer"]["max_steps"] is None
    return folder / "run"


@pytest.fixture
def folder(completed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(completed, tmp_path / "run"))


FURTHER = ("trainer.max_epochs=3", "resume=auto", "resume_accept=[trainer.max_epochs]")


def test_a_completed_run_that_is_trained_further_equals_one_of_that_length(folder: Path, tmp_path: Path) -> None:
    before = read_json(folder / "results.json")
    longer = run(folder, *FURTHER)
    whole = run(tmp_path / "whole", "trainer.max_steps=9")
    assert longer["status"] == "completed"
    assert longer["extended_from"] == 6
    assert longer["scores"]["before"] == before["scores"]["before"]
    assert longer["scores"] == whole["scores"]
    assert longer["history"] == whole["history"]
    assert [row["step"] for row in longer["history"]] == [3, 6, 9]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert is_same(last(folder)[key], last(tmp_path / "whole")[key]), key
    weights = [(place / "model/model.safetensors").read_bytes() for place in (folder, tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_it_equals_one_that_was_interrupted_and_resumed_with_the_same_acceptance(folder: Path, tmp_path: Path) -> None:
    """Interrupted after the last step, and before the scores after training."""
    interrupted = Path(shutil.copytree(folder, tmp_path / "interrupted"))
    results = read_json(interrupted / "results.json")
    write_json(
        interrupted / "results.json",
        {**results, "status": "failed", "scores": {"before": results["scores"]["before"]}},
    )
    # The learning rate falls to 0 at the end of each, and rises where training continues.
    line = ("trainer.max_steps=9", "optim.schedule=linear", "resume=auto", "resume_accept=[trainer,optim]")
    one, other = run(folder, *line), run(interrupted, *line)
    assert one["scores"] == other["scores"]
    assert is_same(last(folder)["state_dict"], last(interrupted)["state_dict"])
    assert last(folder)["lr_schedulers"][0]["_last_lr"] == [0.0, 0.0]


RECIPE = ("optim=muon", "optim.schedule=wsd", "loss.label_smoothing=0.1", "ema.decay=0.9", "model.freeze=encoder")


def test_a_recipe_that_is_trained_further_equals_one_of_that_length_if_its_decay_had_not_begun(tmp_path: Path) -> None:
    """With a moving average of the weights, and an encoder that is not trained."""
    shorter, longer = "optim.decay_steps=1", "optim.decay_steps=4"
    run(tmp_path / "parts", *RECIPE, shorter, "trainer.max_steps=6")
    words = (*RECIPE, longer, "trainer.max_steps=9")
    done = run(tmp_path / "parts", *words, "resume=auto", "resume_accept=[trainer,optim]")
    whole = run(tmp_path / "whole", *words)
    assert [row["step"] for row in done["history"]] == [3, 6, 9]
    assert done["history"][0] == whole["history"][0]
    # The last step of the shorter one was taken at the full learning rate, that of the longer one's decay is lower.
    assert done["history"][1] == whole["history"][1]
    assert is_same(last(tmp_path / "parts")["state_dict"], last(tmp_path / "whole")["state_dict"])
    assert is_same(last(tmp_path / "parts")["average"], last(tmp_path / "whole")["average"])
    card = (tmp_path / "parts/model/README.md").read_text()
    for words in ("optimizer muon", "schedule wsd", "label smoothing 0.1", "weights averaged with decay 0.9"):
        assert words in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optim=muon", "trainer.max_epochs=3", "resume=auto", "resume_accept=[trainer,optim]"],
            r"optim\._target_: was kikitori\.adamw, is now kikitori\.muon; a resumed run keeps it: another optimizer",
        ),
        (
            ["ema.decay=0.9", "trainer.max_epochs=3", "resume=auto", "resume_accept=[trainer]"],
            r"resume_accept=\[trainer,ema\.decay\]'\n  ema\.decay: was null, is now 0\.9",
        ),
        (["resume=auto"], r"completed, after 6 steps: nothing is left to resume; .* trainer\.max_epochs=N 'resume_acc"),
        (
            ["trainer.max_epochs=3", "resume=auto"],
            r"resume_accept=\[trainer\.max_epochs\]'\n  trainer\.max_epochs: was 2",
        ),
        (["trainer.max_steps=6", "resume=auto", "resume_accept=[trainer]"], "nothing is left to resume"),
        (
            [*FURTHER, "callbacks.checkpoint.monitor=val/cer", "resume_accept=[trainer,callbacks]"],
            r"callbacks\.checkpoint\.monitor: was val/loss, is now val/cer; a resumed run keeps it",
        ),
        ([*FURTHER, "data.limit.train=4000000", "data.language=de"], "data.language: was ja, is now de"),
    ],
)
def test_a_completed_run_stays_as_it_is_if_it_cannot_be_trained_further(
    folder: Path, words: list[str], message: str
) -> None:
    before = (folder / "results.json").read_bytes()
    words = words if any(word.startswith("trainer.max_") for word in words) else ["trainer.max_epochs=2", *words]
    with pytest.raises(ConfigError, match=message):
        run(folder, *words)
    assert (folder / "results.json").read_bytes() == before


def test_a_completed_run_without_its_checkpoints_stays_completed(folder: Path) -> None:
    before = read_json(folder / "results.json")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match=r"holds no checkpoint to resume from; .*: model\.name=.*/model"):
        run(folder, *FURTHER)
    shutil.rmtree(folder / "model")
    with pytest.raises(ConfigError, match=r"its weights were not kept, either \(keep=scores\); start a new run"):
        run(folder, *FURTHER)
    assert read_json(folder / "results.json") == before


def test_other_clips_are_scored_before_again_and_choose_the_best_checkpoint_anew(folder: Path) -> None:
    before = read_json(folder / "results.json")
    other = ("data.limit={train: 24, validation: 9, test: 4}", "resume=auto")
    done = run(folder, *FURTHER[:1], *other, "resume_accept=[data,trainer]")
    for stage in ("before", "after"):
        assert {split: scores["clips"] for split, scores in done["scores"][stage].items()} == {
            "train": 3,
            "validation": 9,
            "test": 4,
        }
        assert len(read_lines(folder / f"predictions/validation_{stage}.jsonl")) == 9
    assert done["scores"]["before"]["test"] == before["scores"]["before"]["test"]
    # Scores on the former clips are gone from the history, and cannot choose the best checkpoint.
    assert [("val/loss" in row, row["step"]) for row in done["history"]] == [(False, 3), (False, 6), (True, 9)]
    assert Path(done["checkpoint"]["best"]).name == "step-9.ckpt"
    assert done["checkpoint"]["value"] == done["history"][-1]["val/loss"]
    assert last(folder)["callbacks"]["Recorder"]["validation"] == done["data"]["splits"]["validation"]["digest"]


def test_a_run_that_stopped_early_is_trained_further_only_with_more_patience(tmp_path: Path) -> None:
    stopping = ("callbacks=early_stopping", "+callbacks.early_stopping.min_delta=100", "trainer.max_steps=30")
    folder, accept = tmp_path / "run", "resume_accept=[trainer,callbacks]"
    assert run(folder, *stopping, "callbacks.early_stopping.patience=1")["checkpoint"]["steps"] == 6
    with pytest.raises(ConfigError, match=r"stopped early, after 6 of 30 steps, and would stop again; raise callb"):
        run(folder, *stopping, "callbacks.early_stopping.patience=1", "trainer.max_steps=40", "resume=auto", accept)
    longer = run(folder, *stopping, "callbacks.early_stopping.patience=2", "resume=auto", accept)
    assert longer["checkpoint"]["steps"] == 9


def test_a_checkpoint_that_is_not_the_best_one_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checkpoints, "best_checkpoint", lambda trainer: {"best": "a", "monitor": "val/loss", "value": 9}
    )
    with pytest.raises(
        TrainingError, match=r"the best validation had a val/loss of 5\.\d+, but the chosen checkpoint a"
    ):
        run(folder, *FURTHER)


def test_only_weights_can_be_kept_of_the_best_checkpoints(tmp_path: Path) -> None:
    kept = ("+callbacks.checkpoint.save_weights_only=true", "+callbacks.checkpoint.save_top_k=2", "trainer.max_steps=6")
    first = run(tmp_path, *kept)
    assert len(list((tmp_path / "checkpoints").glob("step-*.ckpt"))) == 2
    # Of the same step, the checkpoint without an optimizer cannot be resumed from.
    assert checkpoints.latest_valid(tmp_path / "checkpoints") == tmp_path / "checkpoints/last.ckpt"
    longer = run(tmp_path, *kept, "trainer.max_steps=9", "resume=auto", "resume_accept=[trainer]")
    assert longer["history"][:2] == first["history"]


def test_lightnings_arguments_mean_what_lightning_says(tmp_path: Path) -> None:
    allowed = ["trainer.deterministic=true", "+trainer.detect_anomaly=true", "+trainer.benchmark=false"]
    allowed += ["+trainer.inference_mode=false", "trainer.log_every_n_steps=0", "trainer.gradient_clip_val=null"]
    allowed += ["trainer.max_steps=3", "validation.every_steps=null", "validation.every_epochs=1"]
    try:
        done = run(tmp_path, *allowed)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert done["status"] == "completed"
    assert [row["step"] for row in done["history"]] == [3]
    assert "train/loss" not in (tmp_path / "metrics.csv").read_text().splitlines()[0]
