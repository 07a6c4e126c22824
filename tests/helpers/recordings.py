"""Test recordings: tones in every format, and corpora in every layout."""

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
# The columns of Common Voice's tables, by release.
RELEASES = {
    "5": "client_id path sentence up_votes down_votes age gender accent locale segment",
    "11": "client_id path sentence up_votes down_votes age gender accents locale segment",
    "17": "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale "
    "segment",
}


def tone(seconds: float = 0.5, hertz: float = 300.0, rate: int = 16_000, amplitude: float = 0.3) -> NDArray[np.float64]:
    """Returns a tone with a little noise, so that different pitches give different samples and none compresses away."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(hertz)).standard_normal(len(times))
    return amplitude * (np.sin(2 * np.pi * hertz * times) + 0.02 * noise)


def encoded(samples: NDArray, form: str = "wav", rate: int = 16_000) -> bytes:
    """Returns the bytes of a file in one of FORMATS."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **FORMATS[form])
    return file.getvalue()


def write_clip(path: Path, hertz: float = 300.0, seconds: float = 0.5) -> Path:
    """Writes a recording in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(tone(seconds, hertz), path.suffix[1:]))
    return path


def common_voice_row(number: int, **cells: str) -> dict[str, str]:
    """Returns the cells of one clip, with its own speaker, path and sentence."""
    row = {"client_id": f"speaker {number}", "path": f"clip_{number}.mp3", "sentence": f"文 {number}", "locale": "ja"}
    return row | cells


def write_tsv(table: Path, rows: Iterable[Mapping[str, str]], columns: str = RELEASES["5"], end: str = "\n") -> Path:
    """Writes a table as Common Voice does: separated by tabs, without quotation marks."""
    table.parent.mkdir(parents=True, exist_ok=True)
    names = columns.split()
    lines = ["\t".join(names), *("\t".join(row.get(name, "") for name in names) for row in rows)]
    table.write_bytes("".join(line + end for line in lines).encode())
    return table


def write_common_voice(folder: Path, clips: Mapping[str, int], columns: str = RELEASES["5"]) -> Path:
    """Writes a language folder; `clips` gives the number of clips per table. Each has its own pitch and speaker."""
    number = 0
    for table, count in clips.items():
        rows = [common_voice_row(number + i) for i in range(count)]
        write_tsv(folder / f"{table}.tsv", rows, columns)
        for row in rows:
            write_clip(folder / "clips" / row["path"], hertz=200 + 10 * number)
            number += 1
    return folder


def write_csv(table: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Writes a table as spreadsheets do: separated by commas, quoted where needed."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_tar(archive: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    """Writes an archive of exactly these members, whether valid or not."""
    with tarfile.open(archive, mode) as tar:
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return archive


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, linkname
    return header
