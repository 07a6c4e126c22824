import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.progress import Progress
from run_folders import REFERENCES, with_errors, write_run

from kikitori.compare.clip_diffs import audio_data_urls, clips_of_run, clips_of_table
from kikitori.compare.leaderboard import leaderboards_of
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.runs.reader import find_runs
from kikitori.runtime.paths import cache_folder


def test_the_clips_that_got_worst_come_first(tmp_path: Path) -> None:
    outputs = [*REFERENCES]
    outputs[2] += "とビールとビールとビール"
    (run,) = find_runs([str(write_run(tmp_path / "a", hypotheses=outputs))])
    found = clips_of_run(run, "validation")
    worst = found["clips"][0]
    assert worst["clip"] == "clip_2.mp3"
    assert worst["after"] == [["equal", "うどんとビール", "うどんとビール"], ["insert", "", "とビールとビールとビール"]]
    assert worst["before"] == [["delete", "うどんとビール", ""]]
    assert worst["cer_before"] == 1.0
    assert worst["cer_after"] == pytest.approx(12 / 7)
    assert found["errors"]["before"]["totals"]["delete"] == sum(map(len, REFERENCES))


def test_adjacent_edits_are_shown_as_one(tmp_path: Path) -> None:
    outputs = ["うどんと水", *REFERENCES[1:]]
    (run,) = find_runs([str(write_run(tmp_path / "a", hypotheses=outputs))])
    clip = next(clip for clip in clips_of_run(run, "validation")["clips"] if clip["clip"] == "clip_0.mp3")
    assert clip["after"] == [["substitute", "カレー", "うどん"], ["equal", "と", "と"], ["substitute", "サラダ", "水"]]


def test_an_evaluation_has_no_before(tmp_path: Path) -> None:
    (run,) = find_runs([str(write_run(tmp_path / "a", 2, command="evaluate"))])
    found = clips_of_run(run, "test")
    assert "before" not in found["clips"][0]
    assert found["errors"].keys() == {"after"}


@pytest.fixture
def cache_name(tmp_path: Path) -> str:
    """A cache of one decoded clip, a tone of half a second."""
    tone = (8000 * np.sin(np.arange(8000) / 20)).astype(np.int16)
    soundfile.write(tmp_path / "clip_0.wav", tone, 16_000)
    clip = Clip("clip_0.mp3", "validation", "カレーとサラダ", "half a second", tmp_path / "clip_0.wav")
    return build_audio_cache([clip], cache_folder() / "store", Progress(disable=True)).path.name


def test_the_audio_is_that_of_the_cache(tmp_path: Path, cache_name: str) -> None:
    splits = {"validation": {"clips": 6, "store": cache_name, "digest": "a"}}
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


def test_a_sample_that_is_damaged_costs_the_audio_and_not_the_page(tmp_path: Path, cache_name: str) -> None:
    path = cache_folder() / "store" / cache_name
    whole = path.read_bytes()
    tone = (8000 * np.sin(np.arange(8000) / 20)).astype(np.int16).tobytes()
    at = whole.index(tone[2000:3000])
    splits = {"validation": {"clips": 6, "store": cache_name, "digest": "a"}}
    (run,) = find_runs([str(write_run(tmp_path / "a", data={"splits": splits}))])
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    try:
        found, why = audio_data_urls(run, "validation", ["clip_0.mp3"])
    finally:
        path.write_bytes(whole)
    assert not found
    assert "the samples of clip_0.mp3 differ from those written" in why


GONE = f"{'0' * 24}.arrow"


def test_a_cache_on_another_machine_is_the_reason_for_no_audio(tmp_path: Path) -> None:
    splits = {"validation": {"clips": 6, "store": GONE}}
    (run,) = find_runs([str(write_run(tmp_path / "a", data={"splits": splits}))])
    assert audio_data_urls(run, "validation", ["clip_0.mp3"]) == (
        {},
        f"the decoded clips, {GONE}, are not in this machine's cache",
    )


def test_the_top_clips_of_each_run_have_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[list[str]] = []
    monkeypatch.setattr(
        "kikitori.compare.clip_diffs.audio_data_urls",
        lambda run, split, clips: (requested.append(clips), ({"clip": "data:"}, ""))[1],
    )
    for n, worst in enumerate((1, 3)):
        outputs = [text + "ぬぬぬぬぬ" * (i == worst) for i, text in enumerate(with_errors(1))]
        write_run(tmp_path / str(n), config={"optim": {"lr": n}}, hypotheses=outputs)
    (table,) = leaderboards_of(find_runs([str(tmp_path)]))
    clips_of_table(table, max_audio=6)
    assert [clips[:2] for clips in requested] == [["clip_1.mp3", "clip_3.mp3"]] * 2
    assert [len(clips) for clips in requested] == [3, 3]
