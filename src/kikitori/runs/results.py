"""The vocabulary of run folders: file names, statuses, stages, what their files hold, the score that ranks a run.

A folder may be anyone's, so each file is read in one way: as plain values of the types below, or not at all.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

from kikitori.config.overrides import leaves
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import UNREADABLE, parse, read_json, read_lines

Results = dict[str, Any]

# Files of a run's folder.
RESULTS = "results.json"
RESULTS_TABLE = "results.md"
PROGRESS = "progress.json"
# The id of the W&B run, which a resumed run continues.
WANDB_RUN_ID = "wandb/run-id"
# Files of a sweep's folder, next to the folders of its trials: its record, and the study of a search.
SWEEP = "sweep.json"
STUDY = "study.journal"

# Statuses of runs that are not resumed.
FINISHED = ("completed", "pruned")
# The stage of a model trained in shorter windows that is scored in the full one, as stock tools read it.
FULL_WINDOW = "after_in_full_window"
# Characters of a transcript that are read. Of one that repeats itself, the rest says nothing and takes long to align.
MAX_TRANSCRIPT = 2000
# Keys of a configuration, ten times those of conf/.
MAX_KEYS = 2000

Count = Annotated[int, lambda value: 0 <= value <= 10**12]
Amount = Annotated[float, lambda value: 0 <= value <= 10**12]
Rate = Annotated[float, lambda value: abs(value) <= 10**6]
Interval = Annotated[list[Rate], lambda bounds: len(bounds) == 2]
# A file or folder in its folder, and one anywhere below it.
Name = Annotated[str, lambda name: name not in ("", ".", "..") and not re.search(r"[/\0]", name)]
Below = Annotated[str, lambda path: not re.search(r"^/|\0|(^|/)\.\.(/|$)", path)]
Store = Annotated[str, re.compile(r"[0-9a-f]{24}\.arrow").fullmatch]


class Rates(TypedDict, total=False):
    """Rates of a split at a stage, or their change. clips: missing in a change."""

    cer: Required[Rate]
    wer: Rate
    cer_raw: Rate
    wer_raw: Rate
    cer_reading: Rate
    cer_ci95: Interval
    wer_ci95: Interval
    clips: Count
    cut: Count


class SplitFacts(TypedDict, total=False):
    """What results.json records of a split's clips. store: the file of the decoded clips in the cache."""

    clips: Required[Count]
    seconds: Amount
    clips_over_window: Count
    store: Store
    digest: str


class DataFacts(TypedDict, total=False):
    """What results.json records of a corpus."""

    corpus: str
    release: str
    language: str
    splits: dict[str, SplitFacts]
    rejects: dict[str, Count]


class ModelFacts(TypedDict, total=False):
    """The model of a run."""

    name: str
    parameters: Count
    window_s: Amount
    window: str
    language: str
    task: str
    notes: list[str]


class Cost(TypedDict, total=False):
    """What a run cost, in seconds and GB."""

    prepare_s: Amount
    encode_s: Amount
    fit_s: Amount
    evaluate_s: Amount
    train_clips_per_s: Amount
    peak_memory_gb: Amount
    devices: Count
    device: str


class Scoring(TypedDict, total=False):
    """The rules by which text is scored."""

    language: str
    normaliser: str
    segmenter: str


class Chosen(TypedDict, total=False):
    """The checkpoint that is scored and saved."""

    steps: Count
    best: str
    best_step: Count
    monitor: str
    value: Rate


class Interruption(TypedDict, total=False):
    """Why and where a run was interrupted."""

    reason: Required[str]
    resumed: str
    step: Count


class Git(TypedDict, total=False):
    """The commit of the code."""

    commit: str
    dirty: bool


class ConfiguredModel(TypedDict, total=False):
    """Keys of a configured model."""

    name: str | None
    language: str | None
    task: str | None


class ConfiguredData(TypedDict, total=False):
    """Keys of configured data."""

    language: str | None
    global_batch_size: Annotated[int, lambda clips: clips > 0]
    global_batch: Annotated[int, lambda clips: clips > 0]


class ConfiguredTrainer(TypedDict, total=False):
    """Keys of a configured Trainer."""

    max_steps: int | None
    max_epochs: int | None
    precision: str | int | None


class ConfiguredCallback(TypedDict, total=False):
    """Keys of a configured callback."""

    patience: Count | None


class ReadKeys(TypedDict, total=False):
    """A resolved configuration: the keys that are read by their names, next to all others."""

    model: ConfiguredModel
    data: ConfiguredData
    trainer: ConfiguredTrainer
    callbacks: dict[str, ConfiguredCallback]
    checkpoint: str | None


Configuration = Annotated[ReadKeys, lambda config: sum(1 for _ in leaves(config)) <= MAX_KEYS]
# A row of the learning curve.
Validation = TypedDict(
    "Validation",
    {"step": Required[Count], "train/loss": float, "val/loss": float, "val/cer": Rate, "val/wer": Rate},
    total=False,
)


class Record(TypedDict, total=False):
    """results.json."""

    status: Literal["running", "completed", "pruned", "failed"]
    command: Literal["train", "evaluate", "prepare"]
    scores: dict[Name, dict[Name, Rates]]
    scored: dict[str, dict[str, str]]
    config: Configuration
    overrides: list[str]
    options: list[str]
    cwd: str
    error: str
    error_type: str
    started: str
    finished: str
    precision: str
    versions: dict[str, str]
    git: Git
    cost: Cost
    data: DataFacts
    model: ModelFacts
    scoring: Scoring
    history: list[Validation]
    checkpoint: Chosen
    interruptions: list[Interruption]
    extended_from: Count
    disk: dict[str, Amount]
    environment: dict[str, str | int | bool]


class TrialRecord(TypedDict, total=False):
    """A trial in sweep.json. folder: its name in the sweep's folder. log: a path below the sweep's folder."""

    folder: Required[Name]
    log: Below
    number: Count
    overrides: list[str]
    swept: dict[str, str]
    state: Literal["waiting", "running", "completed", "pruned", "failed"]
    reason: str
    seconds: Amount
    value: Rate | None
    is_repeatable: bool


class SweepRecord(TypedDict, total=False):
    """sweep.json."""

    trials: list[TrialRecord]
    command: list[str]
    cwd: str
    started: str
    id: str


class Prediction(TypedDict, total=False):
    """A row of a file of transcripts. The counts of edits and lengths besides those of `cer` are kept unread."""

    clip: Required[str]
    reference: Required[str]
    hypothesis: Required[str]
    cer_edits: Required[Count]
    cer_length: Required[Count]


def read_results(folder: Path) -> Results:
    """Reads results.json of a run. Raises DataError if it is missing, damaged, or not what a run records."""
    return _read(folder / RESULTS, Record)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Reads sweep.json of a sweep. Raises DataError if it is missing, damaged, or not what a sweep records."""
    return _read(folder / SWEEP, SweepRecord)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Reads a file of transcripts, of which very long ones are cut. Raises DataError if that is impossible."""
    try:
        rows = read_lines(path, Prediction)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}; delete it") from error
    for row in rows:
        row |= {key: row[key][:MAX_TRANSCRIPT] for key in ("reference", "hypothesis")}
    return rows


def _read(path: Path, kind: type) -> dict[str, Any]:
    value = read_json(path)
    try:
        return parse(value, kind, path.name)
    except ValueError as error:
        raise DataError(f"{path} is not what kikitori writes ({error}); delete it, or its folder") from error


def predictions_file(folder: Path, split: str, stage: str) -> Path:
    """The file of a split's transcripts at a stage: before, after, evaluated or FULL_WINDOW."""
    return folder / "predictions" / f"{split}_{stage}.jsonl"


def ended_before_scoring(folder: Path) -> bool:
    """Whether the run in a folder failed before it had scores or a checkpoint, so that another run may replace it."""
    try:
        results = read_results(folder)
    except DataError:
        return False
    has_checkpoint = any((folder / "checkpoints").glob("*.ckpt"))
    return results.get("status") == "failed" and not results.get("scores") and not has_checkpoint


def scored_precision(checkpoint: Path, accelerator: str) -> str | None:
    """The precision in which the run of a checkpoint scored it on such an accelerator; None if that is unknown.

    checkpoint: the run's folder, its model's folder, or one of its .ckpt files.
    """
    place = checkpoint.expanduser().resolve()
    folder = next((folder for folder in (place, *place.parents[:2]) if (folder / RESULTS).is_file()), None)
    try:
        results = read_results(folder) if folder else {}
    except DataError:
        return None
    on_cpu = str(results.get("cost", {}).get("device", "")).startswith("cpu")
    # Earlier versions recorded the setting only.
    precision = results.get("precision") or results.get("config", {}).get("trainer", {}).get("precision")
    return str(precision) if on_cpu == (accelerator == "cpu") and precision not in (None, "auto") else None


def best_cer(results: Mapping[str, Any]) -> float | None:
    """The lowest validation CER of a training so far, or that of an evaluation; None if there is none."""
    if results.get("command") == "evaluate":
        return results.get("scores", {}).get("evaluated", {}).get("validation", {}).get("cer")
    return min((row["val/cer"] for row in results.get("history", []) if "val/cer" in row), default=None)
