"""Weights & Biases: one run a trial. What is sent there, and what is kept from it.

W&B has a copy: what it is told is in the run's folder as well. So whatever is wrong there is a warning, never an error.
"""

import logging
import netrc
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.config.overrides import sweep_name
from kikitori.metrics.alignment import error_types
from kikitori.runs.results import FINISHED, predictions_file
from kikitori.runtime.files import read_lines
from kikitori.runtime.rng import seeded_sample

log = logging.getLogger(__name__)

HOST = "api.wandb.ai"
# How long a run may wait for W&B: for a word that it is there, for a run to be begun there, and in the end for what is
# still to be sent. An artifact is large.
ANSWER_S, BEGIN_S, FINISH_S, ARTIFACT_S = 3.0, 20.0, 20.0, 600.0
# Rows of the table of clips, and of each kind of error.
SAMPLE_CLIPS = 32
ERRORS_OF_A_KIND = 20
# What W&B would gather by itself: the machine's name, the command line, paths, the git remote (which may hold a
# password), the code, the list of installed packages, and all that is printed.
PRIVACY_SETTINGS = {"x_disable_meta": True, "host": "", "disable_git": True, "save_code": False, "console": "off"}
PRIVACY_SETTINGS |= {"x_save_requirements": False}

Row = dict[str, Any]


def warn_on_failure(send: Callable[..., None]) -> Callable[..., None]:
    """Make a failure to send a warning, after which nothing more is sent."""

    @wraps(send)
    def sent(self: "WandbRunLogger", *what: Any, **how: Any) -> None:
        if self.is_gone:
            return
        try:
            send(self, *what, **how)
        except Exception as error:  # whatever is wrong there
            self.is_gone = True
            log.warning("Weights & Biases: nothing more is sent there (%s); the run's folder has it all", _told(error))

    return sent


class WandbRunLogger(WandbLogger):
    """A W&B run under the run's folder: online where there are credentials, offline and without a prompt elsewhere.

    group: None for the sweep's folder name. name: None for the run's. audio: whether the table of clips plays them,
    which sends them to the server. log_model: whether the best model is kept there as an artifact, under `aliases`.
    A run that goes on in its folder goes on there too. Where W&B does not answer, the run is an offline one.
    """

    def __init__(
        self,
        folder: str,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str,
        tags: list[str],
        notes: str | None,
        name: str | None,
        audio: bool,
        log_model: bool,
        aliases: list[str],
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        mode = os.environ.get("WANDB_MODE") or ("online" if has_credentials() else "offline")
        self.folder = Path(folder)
        self.audio, self.sends_model, self.aliases = audio, log_model, list(aliases)
        self._id_file = self.folder / "wandb" / "run-id"
        self.is_gone = False
        self._is_online = mode not in ("offline", "dryrun", "disabled")
        finish_s = ARTIFACT_S if log_model else FINISH_S
        patience = {"init_timeout": BEGIN_S, "finish_timeout": finish_s, "finish_timeout_raises": True}
        super().__init__(
            project=project,
            save_dir=folder,
            name=name or self.folder.name,
            id=self._id_file.read_text(encoding="utf-8") if self._id_file.exists() else None,
            offline=mode in ("offline", "dryrun"),
            entity=entity,
            group=group or sweep_name(),
            job_type=job_type,
            tags=list(tags),
            notes=notes,
            settings=PRIVACY_SETTINGS | patience,
        )
        # Lightning hands on an argument that W&B no longer has, and W&B says so.
        self._wandb_init.pop("anonymous", None)

    @rank_zero_only
    @warn_on_failure
    def start(self, results: Mapping[str, Any]) -> None:
        """Start the run; the configuration comes by `log_hyperparams`, here what else it takes to run it again."""
        # The clips of a table wait here to be sent. By default that is the user's home, which `wandb sync` on another
        # machine, or after a job's home is gone, does not find.
        os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
        run = self._begun()
        self._id_file.parent.mkdir(exist_ok=True)
        self._id_file.write_text(run.id, encoding="utf-8")
        for metric in ("val/cer", "val/wer", "val/loss"):
            run.define_metric(metric, step_metric="trainer/global_step", step_sync=True, summary="min,last")
        run.config.update({key: results[key] for key in ("overrides", "git", "versions")}, allow_val_change=True)

    def _begun(self) -> Any:
        """W&B's run, offline where there is no other."""
        if self._is_online:
            try:
                check_reachable(server())
                return self.experiment
            except Exception as error:  # whatever is wrong there
                log.warning("Weights & Biases: the run is kept in its folder, to be sent later (%s)", _told(error))
                self._wandb_init["mode"], self._is_online = "offline", False
        return self.experiment

    @rank_zero_only
    @warn_on_failure
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

    @rank_zero_only
    @warn_on_failure
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @rank_zero_only
    @warn_on_failure
    def finish(self, results: Mapping[str, Any], language: str, pcm: Callable[[str], NDArray[np.int16]]) -> None:
        """Send the tables of validation, the scores' changes, the cost, and the best model where it is asked for.

        pcm: the samples of a validation clip at 16 kHz, by its name.
        """
        import wandb

        self.experiment.summary.update(summary(results))
        if self._is_online:
            # A table waits for the server, and for long.
            check_reachable(server())
        before, after = (
            read_lines(predictions_file(self.folder, "validation", stage)) for stage in ("before", "after")
        )
        errors = wandb.Table(["kind", "reference", "hypothesis", "count"], most_common_errors(after, language))
        self.experiment.log(
            {"validation_sample": self._table(sample_rows(before, after), pcm), "validation_errors": errors}
        )
        if self.sends_model:
            self._send_model(results)

    def _table(self, rows: list[Row], pcm: Callable[[str], NDArray[np.int16]]) -> Any:
        """The rows, without their clips' names, which may hold a speaker's; with what was said where that may go."""
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
        # Immutable: the folder stays as it is, so that W&B need not copy it first.
        artifact.add_dir(str(self.folder / "model"), policy="immutable")
        self.experiment.log_artifact(artifact, aliases=self.aliases)


def has_credentials() -> bool:
    """Whether W&B would log in without asking: a key in the environment, or one that `wandb login` left in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = server().split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def server() -> str:
    """The address of W&B, or of a server of one's own."""
    return os.environ.get("WANDB_BASE_URL", f"https://{HOST}").rstrip("/")


def check_reachable(address: str) -> None:
    """Raise TimeoutError unless anything answers there soon: asked in a thread, for even to look up a name may hang."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(f"{address}/healthz", timeout=ANSWER_S).close()
            answered.set()
        except HTTPError:  # an answer
            answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if not answered.is_set():
        raise TimeoutError(f"{address} does not answer within {ANSWER_S:.0f} s")


def finish_run(status: str) -> str:
    """End the process's W&B run, if it has one, and say where it is: its page, or the command that sends it there.

    A trial that neither completed nor was pruned is marked failed. Two runs of one process, as a sweep's may be, would
    else share one run there.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return ""
    run, url = wandb.run, wandb.run.url
    here = Path(run.dir).parent
    unsent = sorted(map(str, here.parent.glob("offline-run-*"))) if run.offline else []
    try:
        run.summary["status"] = status
        run.finish(exit_code=int(status not in FINISHED))
    except Exception as error:  # whatever is wrong there
        log.warning("Weights & Biases: not all could be sent (%s); what is left is in the run's folder", _told(error))
        unsent = unsent or [str(here)]
    return shlex.join(["wandb", "sync", *unsent]) if unsent else url or ""


def _told(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sample_rows(before: list[Row], after: list[Row]) -> list[Row]:
    """A table of the same clips in each run of the same data, the worst regressions first; rates in percent."""
    pairs = sorted(zip(before, after, strict=True), key=lambda pair: pair[0]["clip"])
    rows = []
    for old, new in (pairs[i] for i in seeded_sample(len(pairs), SAMPLE_CLIPS, seed=0)):
        cer = [100 * row["cer_edits"] / max(1, row["cer_length"]) for row in (old, new)]
        texts = {"reference": new["reference"], "before": old["hypothesis"], "after": new["hypothesis"]}
        rates = {"CER % before": cer[0], "CER % after": cer[1], "change": cer[1] - cer[0]}
        rows.append({"clip": new["clip"], **texts, **rates})
    return sorted(rows, key=lambda row: (row["change"], row["CER % after"]), reverse=True)


def most_common_errors(predictions: list[Row], language: str) -> list[list[Any]]:
    """The commonest errors of each kind, the commonest of all first."""
    references, hypotheses = ([row[key] for row in predictions] for key in ("reference", "hypothesis"))
    errors = error_types(references, hypotheses, language)["rows"]
    left = dict.fromkeys((kind for kind, *_ in errors), ERRORS_OF_A_KIND)
    kept = []
    for error in errors:
        left[error[0]] -= 1
        kept += [list(error)] if left[error[0]] >= 0 else []
    return kept


def summary(results: Mapping[str, Any]) -> Row:
    """What a table of runs there is sorted by: scores before, after and their change a split, and the cost."""
    scores = {
        f"{stage}/{split}/{rate}": rates[rate]
        for stage, splits in results["scores"].items()
        for split, rates in splits.items()
        for rate in ("cer", "wer")
    }
    return {**scores, **{f"cost/{key}": value for key, value in results["cost"].items() if value is not None}}
