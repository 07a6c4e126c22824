"""`kikitori export` from a configuration to export.json, with formats and engines that are pretended."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from filelock import FileLock

from kikitori.corpora.types import Speech
from kikitori.exports.formats import Format
from kikitori.exports.read_back import Reading
from kikitori.exports.writing import check_model
from kikitori.model.loading import build_whisper
from kikitori.pipelines import export as pipeline
from kikitori.runtime.errors import ConfigError, ExportFailed, ModelError

pytestmark = pytest.mark.slow
CORPUS = ["data=demo", "data.limit={test: 3}", "check=3"]


def write(model_folder: Path, target: Path, precision: str) -> None:
    assert (model_folder / "model.safetensors").exists()
    (target / "weights").write_text(precision)


def fake(name: str, writes: Callable[[Path, Path, str], None] = write) -> Format:
    return Format(name, None, ("json",), ("float32", "int8"), writes, lambda *arguments: str)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    torch.manual_seed(0)
    build_whisper(d_model=32, encoder_layers=1, decoder_layers=1).save(folder)
    return folder


@pytest.fixture
def run_folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with a model, as far as an export reads it."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(model, folder / "model")
    (folder / "model" / "README.md").write_text("card")
    (folder / "results.json").write_text('{"status": "completed"}')
    return folder


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Pretends two formats; the texts that each engine reads, of which the first is wrong."""
    found = {"alpha": fake("alpha"), "beta": fake("beta")}
    texts: dict[str, list[str]] = {}

    def chosen(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[Format, str]]:
        return [(found[name], precision) for name in names for precision in precisions or ["float32"]]

    def read_back(
        of: Format, folder: Path, clips: Sequence[Speech], task: str, advance: Callable[[], None]
    ) -> list[Reading]:
        assert (folder / "weights").exists()
        if texts[of.name] == ["dies"]:
            raise ExportFailed(f"to={of.name}: the engine was killed by SIGABRT")
        return [Reading(text, 0.5) for text in texts[of.name]]

    read_own = pipeline.parity.read_own

    def own(*arguments: Any) -> Any:
        readings = read_own(*arguments)
        for name in found:
            texts.setdefault(name, [reading.text for reading in readings])
        return readings

    monkeypatch.setattr(pipeline, "chosen", chosen)
    monkeypatch.setattr(pipeline, "check_model", lambda *arguments: None)
    monkeypatch.setattr(pipeline, "read_back", read_back)
    monkeypatch.setattr(pipeline.parity, "read_own", own)
    monkeypatch.setattr(pipeline.parity, "TEXT_TOKENS", 12)
    return texts


def run(place: Path, folder: Path, *words: str) -> dict[str, Any]:
    return pipeline.export(composed("export", [*CORPUS, f"checkpoint={place}", *words]), folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_exports_lie_next_to_the_model_of_their_run_and_are_described(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(run_folder, tmp_path, "to=alpha")
    new = run(run_folder / "model", tmp_path, "to=[beta]", "quantize=[float32,int8]")
    assert names(run_folder / "exports") == ["alpha-float32", "beta-float32", "beta-int8", "export.json"]
    recorded = json.loads((run_folder / "exports" / "export.json").read_text())
    assert (list(recorded), list(new)) == (
        ["alpha-float32", "beta-float32", "beta-int8"],
        ["beta-float32", "beta-int8"],
    )
    entry = recorded["alpha-float32"]
    assert (entry["clips"], entry["equal"], entry["ties"], entry["differing"]) == (3, 3, 0, [])
    assert (entry["bytes"], entry["trained_window"], len(entry["model_sha256"])) == (7, "the full window", 64)
    assert entry["cer"] == entry["cer_ours"]
    assert (entry["corpus"], entry["splits"]) == ("kikitori's demo corpus", ["test"])
    assert "kikitori" in entry["versions"]
    printed = capsys.readouterr().out
    assert "run on 3 clips of " in printed
    assert printed.count("3 of 3") == 3
    # One whose folder was removed is described no more.
    shutil.rmtree(run_folder / "exports" / "alpha-float32")
    assert list(pipeline.read_entries(run_folder / "exports")) == ["beta-float32", "beta-int8"]


def test_a_model_of_no_run_is_exported_to_the_folder_of_the_command(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "results.json").unlink()
    run(run_folder / "model", tmp_path, "to=alpha")
    assert names(tmp_path / "exports") == ["alpha-float32", "export.json"]
    assert not (run_folder / "exports").exists()


def test_a_format_that_fails_costs_only_itself_and_the_command_fails(
    run_folder: Path, tmp_path: Path, engines: dict[str, list[str]]
) -> None:
    engines["alpha"] = ["dies"]
    with pytest.raises(ExportFailed, match=r"^to=alpha: the engine was killed by SIGABRT$"):
        run(run_folder, tmp_path, "to=[alpha,beta]")
    assert names(run_folder / "exports") == ["beta-float32", "export.json"]


def test_texts_that_no_rounding_explains_fail_the_command_after_everything_was_written(
    run_folder: Path, tmp_path: Path, engines: dict[str, list[str]]
) -> None:
    engines["alpha"] = ["wrong"] * 3
    with pytest.raises(ExportFailed, match=r"alpha-float32 reads 3 of 3 clips differently .* by more than rounding"):
        run(run_folder, tmp_path, "to=[alpha,beta]")
    assert names(run_folder / "exports") == ["alpha-float32", "beta-float32", "export.json"]
    rows = json.loads((run_folder / "exports" / "export.json").read_text())["alpha-float32"]["differing"]
    assert [(row["theirs"], row["tie"]) for row in rows] == [("wrong", False)] * 3
    # Of int8, that is what the error rates are for.
    assert run(run_folder, tmp_path, "to=alpha", "quantize=int8")["alpha-int8"]["equal"] == 0


def test_an_export_that_cannot_be_written_leaves_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model_folder: Path, target: Path, precision: str) -> None:
        (target / "weights").write_text("half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(pipeline, "chosen", lambda *arguments: [(fake("alpha", full), "float32")])
    with pytest.raises(ExportFailed, match=r"to=alpha: .*: No space left on device; free space"):
        run(run_folder, tmp_path, "to=alpha")
    assert names(run_folder / "exports") == []


def test_refusals_come_before_anything_is_written(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint: not set; pass the model: kikitori export"):
        pipeline.export(composed("export", [*CORPUS, "to=alpha"]), tmp_path)
    with pytest.raises(ConfigError, match="check: must be above 0, got 0"):
        run(run_folder, tmp_path, "to=alpha", "check=0")
    (tmp_path / "elsewhere").mkdir()
    (run_folder / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exports in its folder is a link; replace it by a folder"):
        run(run_folder, tmp_path, "to=alpha")
    (run_folder / "exports").unlink()
    (run_folder / "exports").mkdir()
    lock = FileLock(run_folder / "exports" / ".lock")
    with lock, pytest.raises(ConfigError, match="run is in use by another process"):
        run(run_folder, tmp_path, "to=alpha")
    assert names(run_folder / "exports") == names(tmp_path / "elsewhere") == []


def test_a_model_of_another_window_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "check_model", check_model)
    with pytest.raises(ModelError, match="has a window of 3 s and 364 tokens"):
        run(run_folder, tmp_path, "to=alpha")
    assert not (run_folder / "exports").exists()
