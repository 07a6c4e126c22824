"""Exports models in every format and precision, and puts all figures into one table.

    python benchmarks/exports.py WHISPER outputs/my-run --corpus cv-corpus-27.0-2026-09-09-ja --folder exports

WHISPER is a folder of a pretrained model. A random model of small widths is exported, too, with the vocabulary and
the 128 Mels of large-v3 and the words of WHISPER. Every row comes from `kikitori export`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from exportable import write_exportable
from tables import markdown

from kikitori.exports.formats import FORMATS, find_format

# mlx computes on a CPU without any library for it.
SLOW, SLOW_CLIPS = ("mlx",), 4
HEAD = ["model", "format", "precision", "MB", "written s", "s per clip", "here", "equal", "ties", "CER %", "change"]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whisper", type=Path, help="folder of a pretrained model")
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs that began with it")
    parser.add_argument("--corpus", type=Path, required=True, help="a Common Voice language folder")
    parser.add_argument("--clips", type=int, default=1000, help="of each split")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--folder", type=Path, default=Path("exports"))
    arguments = parser.parse_args()
    random = arguments.folder / "large-v3-random"
    if not random.exists():
        write_exportable(random, words_of=arguments.whisper)
    rows = [HEAD]
    for model in (random, arguments.whisper, *arguments.runs):
        for name in arguments.formats.split(","):
            clips = min(arguments.clips, SLOW_CLIPS) if name in SLOW or model == random else arguments.clips
            rows += export(model, name, arguments.corpus, clips, arguments.folder)
            print(markdown(rows, []), file=sys.stderr)
    print(markdown(rows, []))


def export(model: Path, name: str, corpus: Path, clips: int, folder: Path) -> list[list[str]]:
    """Exports a model in all precisions of a format. Returns its rows of the table."""
    place = folder / f"{model.name}-{name}"
    command = [str(model), "--to", name, "--quantize", ",".join(find_format(name).precisions), "--check", str(clips)]
    own = ["splits=[train,validation,test]", "data=common_voice", f"data.release={corpus}", f"hydra.run.dir={place}"]
    done = subprocess.run([sys.executable, "-m", "kikitori", "export", *command, *own], check=False)
    own_folder = model if (model / "results.json").exists() else place
    entries = json.loads((own_folder / "exports" / "export.json").read_text(encoding="utf-8"))
    code = f" (exit code {done.returncode})" if done.returncode else ""
    return [row(model.name + code, entry) for entry in entries.values() if entry["format"] == name]


def row(model: str, entry: dict[str, float]) -> list[str]:
    """The cells of one export."""
    low, high = (100 * end for end in entry["cer_change_ci95"])
    return [
        *(model, entry["format"], entry["precision"], f"{entry['bytes'] / 1e6:.0f}", f"{entry['written_s']:.1f}"),
        *(f"{entry['seconds_per_clip']:.2f}", f"{entry['seconds_per_clip_ours']:.2f}"),
        *(f"{entry['equal']} of {entry['clips']}", str(entry["ties"]), f"{100 * entry['cer']:.1f}"),
        f"{100 * entry['cer_change']:+.1f} [{low:+.1f}, {high:+.1f}]",
    ]


if __name__ == "__main__":
    main()
