"""Recordings for the tests of the data path: tones in every format, and the folders that corpora come in."""

import csv
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

FORMATS = {
    "mp3": {"format": "MP3"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
# What releases of Common Voice call their columns.
RELEASES = {
    "5": "client_id path sentence up_votes down_votes age gender accent locale segment",
    "11": "client_id path sentence up_votes down_votes age gender accents locale segment",
    "17": "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale "
    "segment",
}


def tone(seconds: float = 0.5, hertz: float = 300.0, rate: int = 16_000, amplitude: float = 0.3) -> NDArray[np.float64]:
    """A tone with a little noise, so that no two of another pitch are alike and nothing compresses to nothing."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(hertz)).standard_normal(len(times))
    return amplitude * (np.sin(2 * np.pi * hertz * times) + 0.02 * noise)


def encoded(samples: NDArray, form: str = "wav", rate: int = 16_000) -> bytes:
    """The bytes of a file in one of FORMATS."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **FORMATS[form])
    return file.getvalue()


def write_clip(path: Path, hertz: float = 300.0, seconds: float = 0.5) -> Path:
    """A recording in the format that its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(tone(seconds, hertz), path.suffix[1:]))
    return path


def common_voice_row(number: int, **cells: str) -> dict[str, str]:
    """The cells of one clip: a speaker of its own, a path and a sentence."""
    row = {"client_id": f"speaker {number}", "path": f"clip_{number}.mp3", "sentence": f"文 {number}", "locale": "ja"}
    return row | cells


def write_tsv(table: Path, rows: Iterable[Mapping[str, str]], columns: str = RELEASES["5"], end: str = "\n") -> Path:
    """A table as Common Voice writes them: separated by tabs, nothing quoted."""
    table.parent.mkdir(parents=True, exist_ok=True)
    names = columns.split()
    lines = ["\t".join(names), *("\t".join(row.get(name, "") for name in names) for row in rows)]
    table.write_bytes("".join(line + end for line in lines).encode())
    return table


def write_common_voice(folder: Path, clips: Mapping[str, int], columns: str = RELEASES["5"]) -> Path:
    """A language folder with so many good clips a table; every clip has its own pitch and speaker."""
    number = 0
    for table, count in clips.items():
        rows = [common_voice_row(number + i) for i in range(count)]
        write_tsv(folder / f"{table}.tsv", rows, columns)
        for row in rows:
            write_clip(folder / "clips" / row["path"], hertz=200 + 10 * number)
            number += 1
    return folder


def write_csv(table: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """A table as spreadsheets write them: separated by commas, quoted where needed."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_tar(archive: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    """An archive of exactly these members, honest or not."""
    with tarfile.open(archive, mode) as tar:
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return archive


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, linkname
    return header
