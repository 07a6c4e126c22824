"""Clips as a browser plays them: MP3 inside the page, from the store of decoded clips where this machine has it."""

import base64
import io
from collections.abc import Sequence

import soundfile

from kikitori.audio import SAMPLE_RATE
from kikitori.errors import DataError
from kikitori.paths import cache_folder
from kikitori.runs import Run
from kikitori.store import Store


def sources(run: Run, split: str, clips: Sequence[str]) -> tuple[dict[str, str], str]:
    """A data: address for each clip, and why there is none where there is none."""
    name = run.results.get("data", {}).get("splits", {}).get(split, {}).get("store")
    if not name:
        return {}, "results.json names no store of decoded clips"
    path = cache_folder() / "store" / str(name)
    if not path.is_file():
        return {}, f"the store of decoded clips, {path.name}, is not in this machine's cache"
    try:
        store = Store(path)
    except DataError as error:
        return {}, str(error)
    return {clip: encode(store, clip) for clip in clips if clip in store.decoded}, ""


def encode(store: Store, clip: str) -> str:
    """One clip as MP3: every browser plays it, at a few kB a second."""
    file = io.BytesIO()
    soundfile.write(file, store.pcm(clip), SAMPLE_RATE, format="MP3", compression_level=0.9)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
