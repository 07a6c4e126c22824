"""Weights & Biases: one W&B run per run, what is sent to it, and what is kept private.

Everything sent to W&B is also in the run's folder, so a W&B failure is a warning and never ends the run.
"""

import logging
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.config.overrides import sweep_name
from kikitori.metrics.alignment import error_types
from kikitori.metrics.error_rates import row_language
from kikitori.references.wandb_server import check_reachable, check_surroundings, has_credentials, server
from kikitori.runs.results import FINISHED, WANDB_RUN_ID, predictions_file
from kikitori.runs.summary import with_languages
from kikitori.runtime.errors import one_line
from kikitori.runtime.files import read_lines, read_text, write_text
from kikitori.runtime.paths import shown_path
from kikitori.runtime.rng import seeded_sample

log = logging.getLogger(__name__)

# Timeouts: for starting a run, and for sending the rest at the end (an artifact is large).
START_S, FINISH_S, ARTIFACT_S = 20.0, 20.0, 600.0
# Rows in the table of clips, and per kind of error.
SAMPLE_CLIPS = 32
ERRORS_PER_KIND = 20
# Keeps W&B from collecting the host name, the command line, paths, the git remote (which may hold a password), the
# code, the list of installed packages, and everything that is printed.
PRIVACY_SETTINGS = {"x_disable_meta": True, "host": "", "disable_git": True, "save_code": False, "console": "off"}
PRIVACY_SETTINGS |= {"x_save_requirements": False}

Row = dict[str, Any]


def warn_on_failure(send: Callable[..., None]) -> Callable[..., None]:
    """Turns the first failure to send into a warning, after which nothing more is sent."""

    @wraps(send)
    def sent(self: "WandbRunLogger", *what: Any, **how: Any) -> None:
        if self.has_failed:
            return
        try:
            send(self, *what, **how)
        except Exception as error:  # W&B raises many types
            self.has_failed = True
            log.warning("Weights & Biases: sending stopped (%s); everything is in the run's folder", one_line(error))

    return sent


class WandbRunLogger(WandbLogger):
    """A W&B run in the run's folder: online with credentials, otherwise offline and without a prompt.

    group: None for the sweep's folder name. name: None for the run's folder name. audio: whether the table of clips
    includes their audio, which uploads it. log_model: whether the best model is uploaded as an artifact with `aliases`.
    A resumed run continues its W&B run. If the server does not answer, the run is kept offline. WANDB_RUN_ID may name
    the W&B run of a single run; a trial of a sweep always has its own.
    """

    def __init__(
        self,
        folder: str,
        project: str = "kikitori",
        entity: str | None = None,
        group: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
        notes: str | None = None,
        name: str | None = None,
        audio: bool = True,
        log_model: bool = False,
        aliases: Sequence[str] = ("best",),
    ) -> None:
        check_surroundings()
        os.environ.setdefault("WANDB_SILENT", "true")
        mode = os.environ.get("WANDB_MODE") or ("online" if has_credentials() else "offline")
        self.folder = Path(folder)
        self.audio, self.sends_model, self.aliases = audio, log_model, list(aliases)
        self._id_file = self.folder / WANDB_RUN_ID
        self.has_failed = False
        self._is_online = mode not in ("offline", "dryrun", "disabled")
        finish_s = ARTIFACT_S if log_model else FINISH_S
        patience = {"init_timeout": START_S, "finish_timeout": finish_s, "finish_timeout_raises": True}
        super().__init__(
            project=project,
            save_dir=folder,
            name=name or self.folder.name,
            id=self._run_id(),
            offline=mode in ("offline", "dryrun"),
            entity=entity,
            group=group or sweep_name(),
            job_type=job_type,
            tags=list(tags),
            notes=notes,
            # The address that is checked below, whatever ~/.config/wandb/settings holds.
            settings=PRIVACY_SETTINGS | patience | {"base_url": server()},
        )
        # Lightning passes an argument that W&B has removed and warns about.
        self._wandb_init.pop("anonymous", None)

    @property
    def experiment(self) -> Any:
        """The W&B run, which Lightning asks for when it starts; after a failure one that takes anything."""
        return DummyExperiment() if self.has_failed else super().experiment

    def _run_id(self) -> str | None:
        """The id of the resumed run, or the one in the environment, or a new one. Trials share their environment."""
        recorded = read_text(self._id_file) if self._id_file.exists() else ""
        if re.fullmatch(r"[\w-]{1,64}", recorded):
            return recorded
        return secrets.token_hex(4) if sweep_name() else os.environ.get("WANDB_RUN_ID")

    @rank_zero_only
    @warn_on_failure
    def start(self, results: Mapping[str, Any]) -> None:
        """Starts the W&B run and stores what is needed to repeat it besides the configuration (`log_hyperparams`)."""
        # W&B stages the clips of a table here. Its default is the user's home, where `wandb sync` cannot find
        # them on another machine or after a job's home is gone.
        os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
        run = self._start_run()
        self._id_file.parent.mkdir(exist_ok=True)
        write_text(self._id_file, run.id)
        for metric in ("val/cer", "val/wer", "val/loss"):
            run.define_metric(metric, step_metric="trainer/global_step", step_sync=True, summary="min,last")
        run.config.update({key: results[key] for key in ("overrides", "git", "versions")}, allow_val_change=True)

    def _start_run(self) -> Any:
        """The W&B run; offline if the server cannot be reached."""
        if self._is_online:
            try:
                check_reachable(server())
                return self.experiment
            except Exception as error:  # W&B raises many types
                log.warning("Weights & Biases: this run is kept offline, to be synced later (%s)", one_line(error))
                self._wandb_init["mode"], self._is_online = "offline", False
        return self.experiment

    @rank_zero_only
    @warn_on_failure
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

    @rank_zero_only
    @warn_on_failure
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # With W&B's own step as well, it merges what is logged at one step, and ignores a step that it has already.
        at = {} if step is None else {"trainer/global_step": step}
        self.experiment.log({**metrics, **at}, step=step)

    @rank_zero_only
    @warn_on_failure
    def resume_at(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Sends the metrics of a resumed run that W&B lacks, those up to the step from which it continues.

        rows: the metrics, each with its step. A server has most of them; the file of an offline run starts empty. Files
        of earlier offline parts are deleted, since all that they hold is sent again.
        """
        run = self.experiment
        for row in rows:
            if row["step"] >= run.starting_step:
                self.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
        for folder in self.folder.glob("wandb/offline-run-*"):
            if folder != Path(run.dir).parent:
                shutil.rmtree(folder)

    @rank_zero_only
    @warn_on_failure
    def finish(self, results: Mapping[str, Any], language: str, pcm: Callable[[str], NDArray[np.int16]]) -> None:
        """Sends the tables of validation clips and errors, the summary, and the best model if log_model is set.

        language: of the texts, if they are of one. pcm: returns a validation clip's samples, (samples,) int16 at
        16 kHz, by its name.
        """
        import wandb

        self.experiment.summary.update(summary(results))
        if self._is_online:
            # Logging a table blocks for long without a server.
            check_reachable(server())
        before, after = (
            read_lines(predictions_file(self.folder, "validation", stage)) for stage in ("before", "after")
        )
        several = "languages" in results["scoring"]
        common = most_common_errors(after, [row_language(row, language, several) for row in after])
        errors = wandb.Table(["kind", "reference", "hypothesis", "count"], common)
        self.experiment.log(
            {"validation_sample": self._table(sample_rows(before, after), pcm), "validation_errors": errors}
        )
        if self.sends_model:
            self._send_model(results)

    def _table(self, rows: list[Row], pcm: Callable[[str], NDArray[np.int16]]) -> Any:
        """The rows as a W&B table, with audio if allowed, without clip names (which may contain a speaker's)."""
        import wandb

        header: list[Any] = [column for column in rows[0] if column != "clip"]
        body = [[row[column] for column in header] for row in rows]
        if self.audio:
            header = ["audio", *header]
            for row, cells in zip(rows, body, strict=True):
                cells.insert(0, wandb.Audio(pcm(row["clip"]), sample_rate=SAMPLE_RATE))
        return wandb.Table(header, body)

    def _send_model(self, results: Mapping[str, Any]) -> None:
        import wandb

        metadata = {f"{split}/cer": rates["cer"] for split, rates in results["scores"]["after"].items()}
        if results["checkpoint"]["monitor"]:
            metadata[results["checkpoint"]["monitor"]] = results["checkpoint"]["value"]
        artifact = wandb.Artifact(f"model-{self.experiment.id}", "model", metadata=metadata)
        # The folder does not change, so W&B need not copy it first.
        artifact.add_dir(str(self.folder / "model"), policy="immutable")
        self.experiment.log_artifact(artifact, aliases=self.aliases)


@contextmanager
def closing_wandb(results: Mapping[str, Any]) -> Iterator[None]:
    """Finishes the W&B run when the block ends, with the status in the results, and prints where it is."""
    try:
        yield
    finally:
        if where := finish_run(results.get("status", "failed")):
            print(f"Weights & Biases: {where}")


def finish_run(status: str) -> str:
    """Finishes the W&B run of this process, if it has one; returns its URL, or the command that syncs it.

    A run that neither completed nor was pruned is marked failed. Without this, two runs in one process (a sweep with
    Hydra's basic launcher) would share one W&B run.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return ""
    run, url = wandb.run, wandb.run.url
    here = Path(run.dir).parent
    unsent = sorted(here.parent.glob("offline-run-*")) if run.offline else []
    try:
        run.summary["status"] = status
        run.finish(exit_code=int(status not in FINISHED))
        if not unsent:
            # Copies of the tables' audio, which `wandb sync` sends for an offline run.
            shutil.rmtree(here.parent / "artifacts", ignore_errors=True)
    except Exception as error:  # W&B raises many types
        log.warning("Weights & Biases: not everything was sent (%s); all of it is in the run's folder", one_line(error))
        unsent = unsent or [here]
    return shlex.join(["wandb", "sync", *map(shown_path, unsent)]) if unsent else url or ""


def sample_rows(before: list[Row], after: list[Row]) -> list[Row]:
    """Rows for a seeded sample of clips, the same in each run of the same data, worst regressions first; rates in %."""
    pairs = sorted(zip(before, after, strict=True), key=lambda pair: pair[0]["clip"])
    rows = []
    for old, new in (pairs[i] for i in seeded_sample(len(pairs), SAMPLE_CLIPS, seed=0)):
        cer = [100 * row["cer_edits"] / max(1, row["cer_length"]) for row in (old, new)]
        texts = {"reference": new["reference"], "before": old["hypothesis"], "after": new["hypothesis"]}
        rates = {"CER % before": cer[0], "CER % after": cer[1], "change": cer[1] - cer[0]}
        language = {"language": new["language"]} if "language" in new else {}
        rows.append({"clip": new["clip"], **language, **texts, **rates})
    return sorted(rows, key=lambda row: (row["change"], row["CER % after"]), reverse=True)


def most_common_errors(predictions: list[Row], language: str | Sequence[str]) -> list[list[Any]]:
    """The most common errors of each kind, most common first. language: of all texts, or of each clip's."""
    references, hypotheses = ([row[key] for row in predictions] for key in ("reference", "hypothesis"))
    errors = error_types(references, hypotheses, language)["rows"]
    left = dict.fromkeys((kind for kind, *_ in errors), ERRORS_PER_KIND)
    kept = []
    for error in errors:
        left[error[0]] -= 1
        kept += [list(error)] if left[error[0]] >= 0 else []
    return kept


def summary(results: Mapping[str, Any]) -> Row:
    """Scalars for W&B's table of runs: scores before and after, their change, the guard's figures, and the costs."""
    scores = {
        f"{stage}/{split}/{rate}": rates[rate]
        for stage, splits in results["scores"].items()
        for split, rates in with_languages(splits, "/").items()
        for rate in ("cer", "wer")
    }
    guard = {
        f"guard/{row['set']}/{row['reading']}/{row['measure']}/{model}": row[model]
        for row in results.get("guard", [])
        for model in ("base", "tuned")
    }
    return {**scores, **guard, **{f"cost/{key}": value for key, value in results["cost"].items() if value is not None}}
