from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.progress import Progress
from run_folders import REFERENCES, write_run

from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.demo import examples
from kikitori.demo.examples import find_examples
from kikitori.runtime.paths import cache_folder


def cached(tmp_path: Path, numbers: list[int]) -> dict[str, object]:
    """What results.json says of a split whose clips of these numbers are in the cache."""
    clips = []
    for number in numbers:
        samples = (8000 * np.sin(np.arange(8000) / (20 + number))).astype(np.int16)
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        clips.append(Clip(f"clip_{number}.mp3", "validation", "あ", f"{number}", tmp_path / f"{number}.wav"))
    name = build_audio_cache(clips, cache_folder() / "store", Progress(disable=True)).path.name
    split = {"clips": len(clips), "store": name, "digest": "a"}
    return {"corpus": "c", "language": "ja", "splits": {"validation": split}}


def test_clips_on_which_the_models_differ_most_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The base has written nothing, so each text differs by what the model has of it.
    outputs = ["", REFERENCES[1], "うどん", REFERENCES[3], "", REFERENCES[5]]
    run = write_run(tmp_path / "run", hypotheses=outputs, data=cached(tmp_path, [0, 1, 2, 3, 5]))
    found, why = find_examples([str(tmp_path), str(run / "model")])
    assert not why
    assert [example.clip for example in found] == [f"clip_{n}.mp3" for n in (5, 1, 3, 2, 0)]
    assert [example.cer for example in found][1:4] == [[1.0, 0.0], [1.0, 0.0], [1.0, pytest.approx(4 / 7)]]
    assert found[0].samples.shape == (8000,)
    assert found[0].as_plain() == {"reference": REFERENCES[5], "cer": [1.0, 0.0]}
    monkeypatch.setattr(examples, "MAX_EXAMPLES", 2)
    assert len(find_examples([str(run)])[0]) == 2


def test_without_audio_or_transcripts_the_reason_is_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert find_examples([str(run)])[1] == (
        f"the validation clips of {run} are not in this machine's cache; kikitori prepare puts them there"
    )
    (run / "predictions" / "validation_after.jsonl").unlink()
    assert find_examples([str(run)])[1] == f"{run} holds no transcripts of its validation clips"
    (run / "results.json").write_text("{")
    assert "damaged" in find_examples([str(run)])[1]
