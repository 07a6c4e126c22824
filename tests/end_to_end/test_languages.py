"""The real command with a corpus of two languages: scores of each, resumed to the bit, swept, transcribed, compared."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SMALL, interrupt, kikitori, weights

from kikitori.runtime.paths import DEMO

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that sums are the same in every run on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


SPLITS = {"train": 12, "dev": 4, "test": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a list of the demo's clips, every other one of which is called Korean."""
    folder = tmp_path_factory.mktemp("languages")
    (folder / "clips").symlink_to(DEMO / "clips")
    rows: list[dict[str, str]] = []
    for split, count in SPLITS.items():
        with (DEMO / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)):
                facts = {"path": f"clips/{row['path']}", "text": row["sentence"], "split": split}
                rows += [{**facts, "language": "ko" if number % 2 else "Japanese"}] * (number < count)
    with (folder / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


WORDS = [
    *(word for word in SMALL if not word.startswith(("experiment", "data.limit"))),
    *("model=micro", "data=manifest", "data.manifest=list.csv", "data.language_column=language", "data.num_workers=0"),
    *(f"data.roots=[{DEMO}]", "logger=none", "data.window=bucketed", "data.global_batch_size=4", "score.train_clips=4"),
]


def run(cache: Path, *words: str) -> str:
    done = kikitori(*words, cache=cache)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_a_training_in_two_languages_from_beginning_to_end(cache: Path) -> None:
    words = [*WORDS, "trainer.max_steps=8", "callbacks.checkpoint.monitor=val/loss"]
    run(cache, "train", *words, "guard.clips=2", "hydra.run.dir=whole")
    found = results(cache / "whole")
    assert found["data"]["languages"] == found["scoring"]["languages"] == ["ja", "ko"]
    for stage, splits in found["scores"].items():
        for split, rates in splits.items():
            of_each = rates["languages"]
            assert of_each.keys() == {"ja", "ko"}, (stage, split)
            if stage != "change":
                assert sum(of["clips"] for of in of_each.values()) == rates["clips"]
                assert sum(of["cut"] for of in of_each.values()) == rates["cut"]
                assert ("cer_reading" in of_each["ja"], "cer_reading" in of_each["ko"]) == (True, False)
    lines = (cache / "whole/predictions/test_after.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["language"] for line in lines) == ["ja", "ja", "ko", "ko"]
    for page in ("results.md", "model/README.md"):
        assert "test ko" in (cache / "whole" / page).read_text(encoding="utf-8")

    interrupt(
        "train", *words, "guard.clips=0", "hydra.run.dir=cut", cache=cache, after=cache / "cut/checkpoints/step-2.ckpt"
    )
    assert results(cache / "cut")["status"] != "completed"
    table = cache / "list.csv"
    listed = table.read_text(encoding="utf-8")
    roots = f"data.roots=[{DEMO}]"
    table.write_text(listed.replace(",ko", ",zh"), encoding="utf-8")
    refused = kikitori("train", "resume=cut", roots, cache=cache)
    assert "data (train): audio, transcripts or languages have changed" in refused.stderr
    table.write_text(listed, encoding="utf-8")
    run(cache, "train", "resume=cut", roots)
    whole, cut = weights(cache / "whole"), weights(cache / "cut")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert results(cache / "cut")["scores"] == found["scores"]

    transcribe = ("transcribe", str(next((DEMO / "clips").iterdir())), "--model", "whole")
    assert "whole was trained on ja, ko: read as ja (--language chooses another)" in run(cache, *transcribe)
    assert "was trained" not in run(cache, *transcribe, "--language", "ko")
    data = [word for word in WORDS if word.startswith("data.") and "global" not in word]
    run(cache, "evaluate", "checkpoint=whole", "data=manifest", *data, "splits=[test]", "hydra.run.dir=again")
    assert results(cache / "again")["scores"]["evaluated"]["test"] == found["scores"]["after"]["test"]
    run(cache, "compare", "whole", "again", "--report", "report.html")


def test_a_sweep_over_the_first_language(cache: Path) -> None:
    words = [
        *WORDS,
        "trainer.max_steps=2",
        "model.language=ja,ko",
        "hydra.sweep.dir=sweep",
        "hydra.launcher.parallel=1",
    ]
    run(cache, "train", "-m", *words)
    folders = sorted((cache / "sweep").glob("*-*"))
    assert [results(folder)["model"]["language"] for folder in folders] == ["ja", "ko"]
    configs = [json.loads((folder / "model/config.json").read_text(encoding="utf-8")) for folder in folders]
    assert [config["kikitori_languages"] for config in configs] == [["ja", "ko"], ["ko", "ja"]]
    first, second = (results(folder)["scores"]["after"]["test"] for folder in folders)
    assert first == second
