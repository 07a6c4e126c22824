"""The full demo: in minutes it learns from random weights, and from audio alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kikitori.audio.waveform import decode
from kikitori.inference.transcribe import transcribe
from kikitori.metrics.error_rates import corpus_rate, edits_and_lengths, score_clips
from kikitori.model.loading import load_whisper
from kikitori.runtime.paths import DEMO


@pytest.mark.long
def test_the_demo_transcribes_unseen_sentences_from_their_audio_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kikitori", "train", "experiment=demo", "logger=none", "hydra.run.dir=run"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "KIKITORI_CACHE": str(tmp_path)})
    results = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert results["scores"]["after"]["test"]["cer"] <= 0.10
    seen = {line.split("\t")[2] for line in (DEMO / "train.tsv").read_text(encoding="utf-8").splitlines()}
    rows = [json.loads(line) for line in (tmp_path / "run/predictions/test_after.jsonl").read_text().splitlines()]
    assert not seen & {row["reference"] for row in rows}

    whisper = load_whisper(str(tmp_path / "run/model"), "ja", "transcribe")
    whisper.model.eval()
    silenced = [transcribe(whisper, torch.zeros_like(decode(DEMO / "clips" / row["clip"]))) for row in rows]
    cer = corpus_rate(edits_and_lengths(score_clips([row["reference"] for row in rows], silenced, "ja"), "cer"))
    print(f"test CER {results['scores']['after']['test']['cer']:.3f}, silenced {cer:.3f}")
    assert cer > 0.40
