"""What is chosen for Weights & Biases, and in what order."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from tracker import silent_server
from wandb_offline import OfflineRun

from kikitori.config.overrides import sweep_name
from kikitori.references.wandb_server import ANSWER_S, check_reachable, has_credentials
from kikitori.runs.wandb_logger import (
    ERRORS_PER_KIND,
    SAMPLE_CLIPS,
    WandbRunLogger,
    finish_run,
    most_common_errors,
    sample_rows,
    warn_on_failure,
)
from kikitori.runtime.errors import ConfigError

CHOSEN: dict[str, Any] = dict.fromkeys(("entity", "group", "notes", "name"))
CHOSEN |= {"project": "p", "job_type": "train", "tags": [], "audio": True, "log_model": False, "aliases": ["best"]}


def prediction(clip: str, edits: int, length: int = 4) -> dict[str, Any]:
    return {"clip": clip, "reference": "あいうえ", "hypothesis": "か" * edits, "cer_edits": edits, "cer_length": length}


def test_the_worst_regression_comes_first() -> None:
    before = [prediction("a", 0), prediction("b", 4), prediction("c", 1), prediction("d", 2)]
    after = [prediction("a", 1), prediction("b", 0), prediction("c", 4), prediction("d", 3)]
    rows = sample_rows(before, after)
    assert [row["clip"] for row in rows] == ["c", "d", "a", "b"]
    assert [row["change"] for row in rows] == [75, 25, 25, -100]
    assert rows[0]["before"] == "か"
    assert rows[0]["after"] == "かかかか"


def test_every_run_shows_the_same_clips_whatever_their_order() -> None:
    predictions = [prediction(str(i), i % 4) for i in range(100)]
    first = {row["clip"] for row in sample_rows(predictions, predictions)}
    assert len(first) == SAMPLE_CLIPS
    assert {row["clip"] for row in sample_rows(predictions[::-1], predictions[::-1])} == first


def test_a_clip_without_a_reference_has_a_finite_rate() -> None:
    (row,) = sample_rows([prediction("a", 0, length=0)], [prediction("a", 3, length=0)])
    assert row["change"] == 300


def test_a_kind_with_many_errors_does_not_crowd_out_the_others() -> None:
    wrong = [chr(ord("ぁ") + i) for i in range(2 * ERRORS_PER_KIND)]
    rows = [{"reference": "犬猫", "hypothesis": f"犬{w}"} for w in wrong for _ in range(2)]
    rows += [{"reference": "犬猫", "hypothesis": "犬"}, {"reference": "犬猫", "hypothesis": "犬猫も"}]
    found = most_common_errors(rows, "ja")
    assert [kind for kind, *_ in found].count("substitute") == ERRORS_PER_KIND
    assert found[0][0] == "substitute"
    assert found[0][3] == 2
    assert ["delete", "猫", "", 1] in found
    assert ["insert", "", "も", 1] in found


def test_an_address_with_a_password_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://user:canary-0123@host")
    with pytest.raises(ConfigError, match="WANDB_BASE_URL holds a user or password") as caught:
        WandbRunLogger(str(tmp_path))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["WANDB_DEBUG", "WANDB_CORE_DEBUG"])
def test_logs_with_the_api_key_are_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(name, "false")
    WandbRunLogger(str(tmp_path))
    monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match=f"{name}.* makes W&B write the API key to its logs; unset"):
        WandbRunLogger(str(tmp_path))


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_settings_of_the_working_folder_are_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nhttps_proxy = http://127.0.0.1:9\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="W&B would obey it; delete it"):
        WandbRunLogger(str(tmp_path))


def test_the_address_comes_from_the_environment_and_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nbase_url = https://evil.example\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-id").write_text("../../x")
    logger = WandbRunLogger(str(tmp_path))
    assert logger._wandb_init["settings"]["base_url"] == "https://api.wandb.ai"
    assert logger._run_id() != "../../x"


def test_a_launched_trial_is_grouped_by_its_sweeps_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KIKITORI_SWEEP", raising=False)
    assert sweep_name() is None
    monkeypatch.setenv("KIKITORI_SWEEP", str(tmp_path / "size-x-lr"))
    assert sweep_name() == "size-x-lr"


def test_a_resumed_run_continues_its_wandb_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "WANDB_MODE": "offline"})
    assert WandbRunLogger(str(tmp_path), **CHOSEN).version is None
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/run-id").write_text("abcd1234")
    assert WandbRunLogger(str(tmp_path), **CHOSEN).version == "abcd1234"


def test_the_file_of_a_resumed_offline_run_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "WANDB_MODE": "offline"})
    made = dict.fromkeys(("overrides", "git", "versions"))
    killed = WandbRunLogger(str(tmp_path), **CHOSEN)
    killed.start(made)
    for step in (2, 4, 6):
        killed.log_metrics({"train/loss": 1 / step}, step)
    finish_run("failed")
    resumed = WandbRunLogger(str(tmp_path), **CHOSEN)
    resumed.start(made)
    resumed.resume_at([{"step": 2, "train/loss": 1 / 2}, {"step": 4, "train/loss": 1 / 4}, {"step": 4, "val/cer": 0.5}])
    resumed.log_metrics({"train/loss": 1 / 5}, 6)
    finish_run("completed")
    wandb.teardown()  # waits for the process that writes the file
    sent = OfflineRun(tmp_path)  # there is only one
    assert sent.run.run_id == killed.version
    assert sent.logged("_step") == sent.logged("trainer/global_step") == [2, 4, 6]
    assert sent.logged("train/loss") == [1 / 2, 1 / 4, 1 / 5]
    assert sent.logged("val/cer") == [0.5]


@pytest.mark.parametrize("sweep", ["", "outputs/sweep"])
def test_a_run_id_in_the_environment_names_a_single_run_and_no_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sweep: str
) -> None:
    changed = {"WANDB_MODE": "offline", "WANDB_RUN_ID": "abc123", "KIKITORI_SWEEP": sweep}
    monkeypatch.setattr(os, "environ", {**os.environ, **changed})
    ids = [WandbRunLogger(str(tmp_path / trial), **CHOSEN).version for trial in ("0-seed-0", "1-seed-1")]
    assert len({*ids, "abc123"}) == (3 if sweep else 1)


def test_credentials_are_found_where_wandb_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080/")
    assert not has_credentials()
    (tmp_path / ".netrc").write_text("machine wandb.example:8080 login user password abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_credentials()
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert has_credentials()


def test_a_run_that_cannot_start_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbRunLogger(str(tmp_path), project="a/b")
    logger.start({})
    _ = logger.experiment  # as Lightning does
    logger.log_metrics({"val/cer": 1.0}, 1)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Weights & Biases"]
    assert "Invalid project name 'a/b'" in caplog.text


def test_a_silent_server_is_given_up_after_the_timeout() -> None:
    begun = time.monotonic()
    with silent_server(after_the_start=False) as address, pytest.raises(TimeoutError, match="does not answer"):
        check_reachable(address)
    assert time.monotonic() - begun < 2 * ANSWER_S
    with silent_server(after_the_start=True) as address:
        check_reachable(address)
    with pytest.raises(TimeoutError, match="does not answer"):
        check_reachable(address)


def test_a_failure_to_send_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "WANDB_MODE": "offline"})
    logger, sent = WandbRunLogger(str(tmp_path), **CHOSEN), []

    @warn_on_failure
    def send(self: WandbRunLogger, what: int) -> None:
        sent.append(what)
        if what == 2:
            raise ConnectionResetError("Connection lost")

    with caplog.at_level(logging.WARNING):
        for what in range(5):
            send(logger, what)
    assert sent == [0, 1, 2]
    (record,) = caplog.records
    assert "Connection lost" in record.getMessage()
