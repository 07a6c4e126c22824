"""`kikitori push` against a Hub on loopback: what arrives, what is loaded again, and whatever the Hub may answer."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Handler, Hub, Repository, environment, running_hub, use
from pushed_runs import write_pushed_run
from safetensors.torch import load_file

from kikitori.cli import push as command
from kikitori.model.loading import load_whisper
from kikitori.publishing import failures
from kikitori.runtime.errors import ConfigError

NAME = "team/whisper-ja"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        use(found, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_pushed_run(tmp_path / "run")


def push(*words: Any) -> None:
    sys.argv[1:] = [*map(str, words)]
    command.main()


def refusal(*words: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        push(*words)
    assert len(str(caught.value).splitlines()) == 1
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_what_was_pushed_is_loaded_again_to_the_bit(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(run, NAME, "--license", "apache-2.0")
    repository = hub.repositories[NAME]
    commit = repository.branches["main"]
    out = capsys.readouterr().out
    assert f"{NAME} is new, and private\n" in out
    assert f"commit: {hub.url}/{NAME}/commit/{commit}\nto load it: hub:{NAME}@{commit}\n" in out
    assert TOKEN not in out
    assert repository.private
    # One commit, with the files of the model and its card alone.
    assert len(repository.commits) == 2
    files = repository.commits[commit]
    assert files.keys() == {".gitattributes", *(path.name for path in (run / "model").iterdir())}
    assert b"license: apache-2.0\n" in files["README.md"]
    assert not [name for name, content in files.items() if b"speaker-7" in content or b"/home/somebody" in content]
    whisper = load_whisper(f"hub:{NAME}@{commit}")
    weights = load_file(run / "model" / "model.safetensors")
    assert weights
    assert all(torch.equal(whisper.model.state_dict()[name], weight) for name, weight in weights.items())


def test_a_dry_run_lists_everything_and_uses_no_network(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("a request was made"))
    (run / "model" / "clip.mp3").touch()
    push(run, NAME, "--dry-run")
    out = capsys.readouterr().out
    for path in (run / "model").iterdir():
        assert path.name in out
    assert "left out: clip.mp3\n" in out
    assert "\nlanguage: ja\n" in out
    assert "no licence is stated" in out
    assert "nothing was uploaded (--dry-run); " in out
    assert out.endswith(" would be private if new\n")


def test_a_second_push_replaces_the_files_and_sends_the_weights_once(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, NAME)
    first = hub.repositories[NAME].branches["main"]
    (run / "model" / "README.md").write_text("# Another card\n", encoding="utf-8")
    push(run, NAME)
    assert hub.repositories[NAME].branches["main"] != first
    assert len([line for line in hub.requests if line.startswith("PUT /large")]) == 1
    assert f"{NAME} exists, and stays private" in capsys.readouterr().out


def test_a_pull_request_leaves_the_main_branch(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[NAME] = Repository(private=True)
    before = hub.repositories[NAME].branches["main"]
    push(run, NAME, "--pull-request")
    branches = hub.repositories[NAME].branches
    assert branches["main"] == before
    assert f"pull request: {hub.url}/{NAME}/discussions/1\n" in capsys.readouterr().out
    assert load_whisper(f"hub:{NAME}@refs/pr/1").recipe["revision"] == branches["refs/pr/1"]


def test_visibility_is_that_of_a_new_repository_and_never_changed(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "mine", "--public")
    assert not hub.repositories["tester/mine"].private
    assert "to load it: hub:tester/mine@" in capsys.readouterr().out
    repository = hub.repositories["tester/mine"]
    assert b'load_whisper("hub:tester/mine")' in repository.commits[repository.branches["main"]]["README.md"]
    assert "tester/mine exists and is public, and what is pushed would be, too; add --public" in refusal(
        run, "tester/mine"
    )
    hub.repositories[NAME] = Repository(private=True)
    push(run, NAME, "--public")
    assert hub.repositories[NAME].private
    assert "exists and stays private; its page on the Hub has a setting for this" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("request_line", "status", "headers", "reason"),
    [
        ("POST /api/models/.*/commit", 401, {}, "does not accept the token (401); log in again with hf auth login"),
        ("POST /api/models/.*/commit", 403, {}, "may not write to team/whisper-ja (403); use one with the permission"),
        ("POST /api/models/.*/commit", 404, {}, "or no owner team, that this token may see (404)"),
        ("POST /api/models/.*/commit", 409, {}, "changed by somebody else meanwhile (409); run this again"),
        ("POST /api/models/.*/commit", 412, {}, "changed by somebody else meanwhile (412)"),
        ("POST /api/models/.*/commit", 422, {}, "the Hub refuses to take team/whisper-ja (422): "),
        ("PUT /large", 403, {}, "may not write to team/whisper-ja (403)"),
        ("POST /api/models/.*/commit", 429, {"Retry-After": "3600"}, "asks to wait 3600 s (429); run this again then"),
        ("POST /api/models/.*/preupload", 429, {"Retry-After": "3600"}, "asks to wait 3600 s (429)"),
        ("POST /api/models/.*/preupload", 429, {"RateLimit": '"api";r=0;t=3600'}, "asks to wait 3600 s (429)"),
        ("PUT /large", 500, {"Retry-After": "3600"}, "asks to wait 3600 s (500)"),
        ("POST /api/models/.*/commit", 0, {}, "team/whisper-ja was not pushed: "),
    ],
)
def test_what_the_hub_answers_is_one_sentence_and_leaves_no_part_of_a_commit(
    hub: Hub, run: Path, request_line: str, status: int, headers: dict[str, str], reason: str
) -> None:
    hub.faults.append((request_line, status, headers))
    assert reason in refusal(run, NAME)
    assert hub.faults == []
    assert len(hub.repositories[NAME].commits) == 1
    push(run, NAME)
    assert len(hub.repositories[NAME].commits) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again_and_given_up_in_the_end(hub: Hub, run: Path, status: int) -> None:
    line = "POST /api/models/.*/commit"
    hub.faults += [(line, status, {"Retry-After": "1"})] * 2
    push(run, NAME)
    assert len(hub.repositories[NAME].commits) == 2
    (run / "model" / "README.md").write_text("# Another card\n", encoding="utf-8")
    hub.faults += [(line, status, {})] * 20
    reason = "too many requests (429)" if status == 429 else f"has a fault of its own ({status}); run this again later"
    assert reason in refusal(run, NAME)
    assert len(hub.faults) == 20 - failures.TRIES


def test_an_answer_is_not_waited_for_without_end(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "ANSWER_S", 0.1)
    hub.hold = f"GET /api/models/{NAME}"
    threading.Timer(5, hub.released.set).start()  # without the limit, the test fails instead of waiting for ever
    assert "team/whisper-ja was not pushed: timed out; run this again" in refusal(run, NAME)
    hub.released.set()


def test_what_is_no_answer_of_a_hub_is_named(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Handler.answer
    monkeypatch.setattr(Handler, "answer", lambda self, *_: answer(self, 200, b"<html>Log in to this network"))
    assert "does not answer as the Hub does (JSONDecodeError: " in refusal(run, NAME)


def test_a_token_and_an_owner_that_are_not_known_are_named(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "may not write to nobody/a (403)" in refusal(run, "nobody/a")
    monkeypatch.setenv("HF_TOKEN", "hf_another_0123456789")
    assert "does not accept the token (401)" in refusal(run, NAME)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token for the Hub; log in with hf auth login, or set HF_TOKEN" in refusal(run, NAME)
    assert NAME not in hub.repositories


def test_without_a_network_nothing_is_tried(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer; check the network" in refusal(run, NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it" in refusal(run, NAME)


@pytest.mark.parametrize("name", ["a/b/c", "team/a b", "../a", "hub:team/a", "-a", ""])
def test_what_is_no_name_is_refused_before_anything(run: Path, name: str) -> None:
    assert refusal("--", run, name).startswith(f"{name} is no name on the Hub; give owner/model")


def test_files_that_arrived_otherwise_are_named(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Repository.commit

    def damaged(self: Repository, revision: str, files: dict[str, bytes], branch: str) -> str:
        return commit(self, revision, {**files, "config.json": b"{}"}, branch)

    monkeypatch.setattr(Repository, "commit", damaged)
    assert (
        "config.json of team/whisper-ja has another size or checksum on the Hub than here; run this again"
        in refusal(run, NAME)
    )


@pytest.mark.long
@pytest.mark.parametrize("request_line", ["PUT /large", "POST /api/models/.*/commit"])
def test_a_push_that_is_killed_leaves_no_part_and_is_made_good_by_the_next(
    hub: Hub, run: Path, tmp_path: Path, request_line: str
) -> None:
    line = [sys.executable, "-m", "kikitori", "push", str(run), NAME]
    variables = {**os.environ, **environment(hub, tmp_path)}
    hub.hold = request_line
    with subprocess.Popen(line, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert hub.held.wait(60)
        process.kill()
    hub.hold = ""
    hub.released.set()
    repository = hub.repositories[NAME]
    assert [*repository.commits[repository.branches["main"]]] == [".gitattributes"]
    done = subprocess.run(line, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "config.json" in repository.commits[repository.branches["main"]]
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.long
def test_the_command_answers_in_one_line_without_a_traceback(hub: Hub, run: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "kikitori", "push", str(run)]
    variables = {**os.environ, **environment(hub, tmp_path)}
    for name, found in ((NAME, "the token may not write"), ("a/b/c", "is no name on the Hub")):
        hub.faults = [("POST /api/repos/create", 403, {})]
        done = subprocess.run([*line, name], env=variables, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("ConfigError: ")
        assert found in done.stderr
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stdout + done.stderr
