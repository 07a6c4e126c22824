"""`kikitori export`: writes a model for other engines, and compares what each of them reads with our own reading."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from math import inf
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.text import Text

from kikitori.config.validation import check_config
from kikitori.corpora.types import Speech
from kikitori.exports import parity
from kikitori.exports.formats import Format
from kikitori.exports.read_back import read_back
from kikitori.exports.writing import (
    check_model,
    check_space,
    chosen,
    digest,
    folder_bytes,
    replaced_folder,
    restore,
    scratch_folder,
    write_errors,
)
from kikitori.model.whisper import Whisper
from kikitori.model.window import describe_window
from kikitori.runs.results import Results, folder_of_run
from kikitori.runs.summary import Grid, fit, percent, rate_cell, terminal
from kikitori.runtime.console import duration, progress_bar, quiet_libraries
from kikitori.runtime.errors import ConfigError, ExportFailed, shortened
from kikitori.runtime.files import OBJECT, expanded, is_regular, read_json, write_json
from kikitori.runtime.paths import check_run_folder
from kikitori.runtime.processes import folder_lock
from kikitori.steps.builders import build_data, load_model, model_name, prepare_data
from kikitori.steps.guarding import speech_of
from kikitori.steps.origin import with_corpus

log = logging.getLogger(__name__)

# The folder in that of a run with its exports, the file in it that describes them, and the model that they are made of.
EXPORTS, RECORD, MODEL = "exports", "export.json", ".model.partial"
CARD = "README.md"
# How a model is loaded: with its own settings of generation, which are saved again, and without limits of ours.
GENERATION = {"max_new_tokens": None, "num_beams": None, "max_tokens_per_s": inf}
HEADER = [
    "format",
    "precision",
    "size MB",
    "written s",
    "s per clip",
    "equal texts",
    "ties",
    "CER % here",
    "CER % there",
]
CHANGE = "change"

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """What is exported: the model, its folder with the digest of its weights, and our own readings of the clips."""

    whisper: Whisper
    folder: Path
    sha256: str
    task: str
    clips: Sequence[Speech]
    own: Sequence[parity.Own]
    corpus: str
    splits: Sequence[str]


def export(cfg: DictConfig | dict[str, Any], folder: Path) -> Entries:
    """Writes the model of `checkpoint` in each format, reads it back, and returns what export.json holds of that.

    The exports are in the folder of the model's run, or else in `folder`. Raises ExportFailed after everything was
    written if an engine cannot read its export, or reads texts that no rounding explains.
    """
    name = cfg["checkpoint"]
    if not name:
        raise ConfigError("checkpoint: not set; pass the model: kikitori export outputs/my-run --to ctranslate2")
    config = check_config(with_corpus(cfg, name))
    quiet_libraries()
    formats = chosen(config["to"], config["quantize"])
    data = build_data(config)
    data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
    whisper = load_model({**config, "generation": GENERATION}, "checkpoint")
    check_model(whisper, name)
    place = exports_folder(name, folder)
    check_space(place.parent, whisper.num_parameters, formats)
    data = data.with_processor(whisper.processor)
    results: Results = {"cost": {}}
    prepare_data(config, data, folder, results)
    language = whisper.processor.language
    clips = [clip for split in data.splits for clip in speech_of(data, split, config["check"], language)]
    place.mkdir(parents=True, exist_ok=True)
    with folder_lock(place, f"checkpoint={name}", ConfigError):
        restore(place)
        entries = read_entries(place)
        with saved_model(whisper, place) as model_folder:
            source = read_source(whisper, model_folder, clips, results["data"]["corpus"], data.splits)
            new, failures = export_all(source, formats, place, entries)
    print_table(new, f"{model_name(config)} on {len(clips)} clips of {source.corpus}")
    log.info("the exports are in %s", place)
    if failures:
        raise ExportFailed("; ".join(failures))
    return new


def exports_folder(name: str, folder: Path) -> Path:
    """The folder of the exports: next to the model of a run, else in the command's own folder."""
    place = expanded(name).resolve()
    run = folder_of_run(place)
    if run is None or place not in (run, run / "model"):
        return folder / EXPORTS
    if (run / EXPORTS).is_symlink():
        raise ConfigError(f"checkpoint={name}: {EXPORTS} in its folder is a link; replace it by a folder")
    check_run_folder(run / EXPORTS, "checkpoint")
    return run / EXPORTS


def read_entries(place: Path) -> Entries:
    """What export.json holds of the exports that are still there."""
    if not (place / RECORD).exists():
        return {}
    entries: Entries = read_json(place / RECORD, {str: OBJECT})
    return {name: entry for name, entry in entries.items() if (place / name).is_dir()}


@contextmanager
def saved_model(whisper: Whisper, place: Path) -> Iterator[Path]:
    """Yields a folder with the model as every converter reads it, adapters merged, and with the card of its run."""
    with scratch_folder(place / MODEL) as folder:
        with write_errors(str(place)):
            whisper.save(folder)
        if is_regular(card := place.parent / "model" / CARD):
            shutil.copyfile(card, folder / CARD)
        yield folder


def read_source(whisper: Whisper, folder: Path, clips: Sequence[Speech], corpus: str, splits: Sequence[str]) -> Source:
    """Reads the clips with the model itself."""
    whisper.model.eval()
    if whisper.processor.window.edges_s:
        window = describe_window(whisper.processor.window)
        log.info("the model was trained in other windows (%s); here it is read in 30 s, as other engines do", window)
    with reading("kikitori", len(clips)) as advance:
        own = parity.read_own(whisper, clips, advance)
    sha256 = digest(folder / "model.safetensors")
    return Source(whisper, folder, sha256, whisper.processor.task, clips, own, corpus, splits)


@contextmanager
def reading(what: str, clips: int) -> Iterator[Callable[[], None]]:
    """Shows the progress of a reading. Yields a function that is called after each clip."""
    log.info("reading %d clips with %s", clips, what)
    with progress_bar() as bar:
        task = bar.add_task(f"reading with {what}", total=clips)
        yield lambda: bar.advance(task)


def export_all(
    source: Source, formats: Sequence[tuple[Format, str]], place: Path, entries: Entries
) -> tuple[Entries, list[str]]:
    """Makes all exports, and adds each to export.json. Returns those that were made, and what is wrong with others."""
    new: Entries = {}
    failures = []
    for of, precision in formats:
        name = f"{of.name}-{precision}"
        try:
            with replaced_folder(place / name) as folder:
                entry = make_export(source, of, precision, folder, name)
                # Until the new entry is written, none is better than that of the earlier export.
                if entries.pop(name, None):
                    write_json(place / RECORD, entries)
            new[name] = entries[name] = entry
        except ExportFailed as error:  # costs only itself
            failures.append(str(error))
            continue
        write_json(place / RECORD, entries)
        if differing := parity.beyond_ties(new[name]):
            failures.append(
                f"{name} reads {len(differing)} of {len(source.clips)} clips differently from the model, by more than "
                f"rounding ({shortened(differing)}); {place / RECORD} has the texts"
            )
    return new, failures


def make_export(source: Source, of: Format, precision: str, folder: Path, name: str) -> dict[str, Any]:
    """Writes one export and reads it back. Returns what came of it."""
    start = time.perf_counter()
    with write_errors(f"to={of.name}"):
        of.write(source.folder, folder, precision)
    written_s, size = time.perf_counter() - start, folder_bytes(folder)
    log.info("%s: %.0f MB, written in %s", name, size / 1e6, duration(written_s))
    with reading(name, len(source.clips)) as advance:
        theirs = read_back(of, folder, source.clips, source.task, advance)
    return {
        "format": of.name,
        "precision": precision,
        "bytes": size,
        "written_s": round(written_s, 1),
        "versions": {name: version(name) for name in ("kikitori", *distributions(of.modules))},
        "model_sha256": source.sha256,
        "trained_window": describe_window(source.whisper.processor.window),
        "corpus": source.corpus,
        "splits": [*source.splits],
        **parity.compare(source.whisper, source.clips, source.own, theirs, precision),
    }


def distributions(modules: Sequence[str]) -> list[str]:
    """The packages that installed some modules, by the names under which they are published."""
    found = packages_distributions()
    return sorted({name for module in modules for name in found.get(module, ())})


def print_table(entries: Entries, title: str) -> None:
    """Prints the figures of exports."""
    console = terminal()
    if not entries:
        return
    console.print(Text(title), soft_wrap=True)
    rows = list(map(table_row, entries.values()))
    columns = dict(zip([*HEADER, CHANGE], zip(*rows, strict=True), strict=True))
    groups = [HEADER[2:5], HEADER[5:7], [*HEADER[7:], CHANGE]]
    for table in fit(Grid(HEADER[:2], groups, columns, left=HEADER[:2]), console):
        console.print(table)


def table_row(entry: Mapping[str, Any]) -> list[str]:
    """The cells of an export: rates in percent, the change of the CER with its paired 95 % interval."""
    change = {"cer": entry["cer_change"], "cer_ci95": entry["cer_change_ci95"]}
    return [
        entry["format"],
        entry["precision"],
        f"{entry['bytes'] / 1e6:.0f}",
        f"{entry['written_s']:.1f}",
        f"{entry['seconds_per_clip']:.2f}",
        f"{entry['equal']} of {entry['clips']}",
        str(entry["ties"]) if entry["precision"] in parity.TOLERANCE else "–",
        percent(entry["cer_ours"]),
        percent(entry["cer"]),
        rate_cell(change, "cer", sign="+"),
    ]
