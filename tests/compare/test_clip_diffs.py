import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.progress import Progress
from run_folders import REFERENCES, misheard, write_run

from kikitori.compare.clip_diffs import audio_data_urls, of_run, of_table
from kikitori.compare.leaderboard import data_sets
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.runs.reader import find_runs
from kikitori.runtime.paths import cache_folder


def test_the_clips_that_lost_most_come_first(tmp_path: Path) -> None:
    heard = [*REFERENCES]
    heard[2] += "とビールとビールとビール"
    (run,) = find_runs([str(write_run(tmp_path / "a", hypotheses=heard))])
    told = of_run(run, "validation")
    worst = told["clips"][0]
    assert worst["clip"] == "clip_2.mp3"
    assert worst["after"] == [["equal", "うどんとビール", "うどんとビール"], ["insert", "", "とビールとビールとビール"]]
    assert worst["before"] == [["delete", "うどんとビール", ""]]
    assert worst["cer_before"] == 1.0
    assert worst["cer_after"] == pytest.approx(12 / 7)
    assert told["errors"]["before"]["totals"]["delete"] == sum(map(len, REFERENCES))


def test_edits_that_touch_are_shown_as_one(tmp_path: Path) -> None:
    heard = ["うどんと水", *REFERENCES[1:]]
    (run,) = find_runs([str(write_run(tmp_path / "a", hypotheses=heard))])
    clip = next(clip for clip in of_run(run, "validation")["clips"] if clip["clip"] == "clip_0.mp3")
    assert clip["after"] == [["substitute", "カレー", "うどん"], ["equal", "と", "と"], ["substitute", "サラダ", "水"]]


def test_an_evaluation_has_no_before(tmp_path: Path) -> None:
    (run,) = find_runs([str(write_run(tmp_path / "a", 2, command="evaluate"))])
    told = of_run(run, "test")
    assert "before" not in told["clips"][0]
    assert told["errors"].keys() == {"after"}


@pytest.fixture
def store_name(tmp_path: Path) -> str:
    """A store of one clip, a tone of half a second."""
    tone = (8000 * np.sin(np.arange(8000) / 20)).astype(np.int16)
    soundfile.write(tmp_path / "clip_0.wav", tone, 16_000)
    clip = Clip("clip_0.mp3", "validation", "カレーとサラダ", "half a second", tmp_path / "clip_0.wav")
    return build_audio_cache([clip], cache_folder() / "store", Progress(disable=True)).path.name


def test_audio_is_what_the_store_holds(tmp_path: Path, store_name: str) -> None:
    splits = {"validation": {"clips": 6, "store": store_name, "digest": "a"}}
    (run,) = find_runs([str(write_run(tmp_path / "a", data={"corpus": "c", "language": "ja", "splits": splits}))])
    found, why = audio_data_urls(run, "validation", ["clip_0.mp3", "clip_1.mp3"])
    assert not why
    assert found.keys() == {"clip_0.mp3"}
    head, _, body = found["clip_0.mp3"].partition(",")
    assert head == "data:audio/mpeg;base64"
    samples, rate = soundfile.read(io.BytesIO(b64decode(body)))
    assert rate == 16_000
    assert len(samples) == pytest.approx(8000, abs=2000)
    assert abs(samples).max() == pytest.approx(8000 / 2**15, rel=0.2)


def test_a_store_on_another_machine_is_said(tmp_path: Path) -> None:
    splits = {"validation": {"clips": 6, "store": "gone.arrow"}}
    (run,) = find_runs([str(write_run(tmp_path / "a", data={"splits": splits}))])
    assert audio_data_urls(run, "validation", ["clip_0.mp3"]) == (
        {},
        "the store of decoded clips, gone.arrow, is not in this machine's cache",
    )


def test_audio_goes_to_the_clips_on_top_of_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "kikitori.compare.clip_diffs.audio_data_urls",
        lambda run, split, clips: (asked.append(clips), ({"clip": "data:"}, ""))[1],
    )
    for n, worst in enumerate((1, 3)):
        heard = [text + "ぬぬぬぬぬ" * (i == worst) for i, text in enumerate(misheard(1))]
        write_run(tmp_path / str(n), config={"optim": {"lr": n}}, hypotheses=heard)
    (table,) = data_sets(find_runs([str(tmp_path)]))
    of_table(table, most_audio=6)
    assert [clips[:2] for clips in asked] == [["clip_1.mp3", "clip_3.mp3"]] * 2
    assert [len(clips) for clips in asked] == [3, 3]
