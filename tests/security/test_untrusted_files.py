"""Pickles in place of every file that kikitori reads: none is loaded; each is refused with a message, or skipped.

Loading one would create the folder `executed`. The readers below are those of the commands, with their errors.
"""

import gzip
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import optuna
import pyarrow as pa
import pytest
import torch
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from recordings import write_clip, write_common_voice, write_csv
from run_folders import write_run

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import decode
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.corpora import common_voice, hub, manifest
from kikitori.corpora.archive import unpack
from kikitori.data.audio_cache import AudioCache
from kikitori.data.encoder_cache import EncoderCache
from kikitori.model import loading
from kikitori.model.whisper import Whisper
from kikitori.pipelines.evaluate import load_checkpoint
from kikitori.runs import reader
from kikitori.runtime.errors import ConfigError, DataError, KikitoriError, ModelError, SweepError
from kikitori.runtime.files import read_json
from kikitori.sweeps import optuna_study
from kikitori.sweeps.pruning import OptunaPruning
from kikitori.sweeps.trials import open_sweep
from kikitori.training import checkpoints

CODE = "import os\nos.mkdir('executed')\n"


class Canary:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    # So that datasets and transformers could import modules from here.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    assert not Path("executed").exists()


def plain() -> bytes:
    return pickle.dumps(Canary())


def zipped() -> bytes:
    """A pickle in torch's current file format."""
    file = io.BytesIO()
    torch.save({"state_dict": {}, "hyper_parameters": {"recipe": Canary()}, "global_step": 1}, file)
    return file.getvalue()


def legacy() -> bytes:
    """A pickle in torch's legacy file format."""
    file = io.BytesIO()
    torch.save({"state_dict": Canary(), "global_step": 1}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Canary()], dtype=object), allow_pickle=True)
    return file.getvalue()


PICKLES = [plain, zipped, legacy, array]


def test_the_canary_detects_unpickling(tmp_path: Path) -> None:
    """Unsafe loaders execute the pickles, so the tests below can fail."""
    loaders = (pickle.loads, *[lambda data: torch.load(io.BytesIO(data), weights_only=False)] * 2)
    for made, load in zip((plain, zipped, legacy), loaders, strict=True):
        load(made())
        Path("executed").rmdir()
    np.load(io.BytesIO(array()), allow_pickle=True)
    Path("executed").rmdir()


@pytest.mark.parametrize("made", PICKLES)
def test_evaluate_refuses_a_pickled_checkpoint(made: Callable[[], bytes]) -> None:
    Path("evil.ckpt").write_bytes(made())
    model, data = {"language": "ja", "task": "transcribe"}, {"language": "ja"}
    cfg = OmegaConf.create({"checkpoint": "evil.ckpt", "model": model, "data": data})
    with pytest.raises(DataError, match=r"evil\.ckpt is damaged, or holds more than weights and plain values"):
        load_checkpoint(cfg)


@pytest.mark.parametrize("made", PICKLES)
def test_resuming_skips_a_pickled_checkpoint(made: Callable[[], bytes]) -> None:
    for name in ("last.ckpt", "step-10.ckpt"):
        data = made()
        Path(name).write_bytes(data)
        Path(f"{name}.sha256").write_text(f"{sha256(data).hexdigest()}  {name}\n")
    assert checkpoints.latest_valid(Path()) is None


@pytest.mark.parametrize("made", PICKLES)
@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("model.safetensors", ""),
        ("model.safetensors.index.json", "model.safetensors"),
        ("shard-00000-model-00001-of-00001.safetensors", "model.safetensors"),
        ("config.json", ""),
        ("tokenizer.json", ""),
        ("tokenizer_config.json", ""),
    ],
)
def test_a_model_with_a_pickled_file_is_refused(
    micro: Whisper, made: Callable[[], bytes], name: str, removed: str
) -> None:
    micro.save(Path("model"))
    Path("model", removed or "absent").unlink(missing_ok=True)
    Path("model", name).write_bytes(made())
    with pytest.raises(ModelError, match=r"model\.name=model cannot be loaded"):
        loading.load_whisper("model", "ja", "transcribe")


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "../evil.bin", "adapter_model.bin"])
def test_an_index_of_weights_that_names_pickles_is_refused(micro: Whisper, weights: str) -> None:
    micro.save(Path("model"))
    keys = list(micro.model.state_dict())
    Path("model", "model.safetensors").unlink()
    Path("model", weights).write_bytes(legacy())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, weights)}
    Path("model", "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.name=model(: model.safetensors.index.json names| cannot be loaded)"):
        loading.load_whisper("model", "ja", "transcribe")


def test_code_and_pickles_next_to_a_good_model_are_ignored(micro: Whisper) -> None:
    micro.save(Path("model"))
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "custom_generate/generate"):
        Path("model", name).with_suffix(".py").parent.mkdir(exist_ok=True)
        Path("model", name).with_suffix(".py").write_text(CODE)
    maps = {
        "config.json": {
            "AutoConfig": "configuration_evil.C",
            "AutoModelForSpeechSeq2Seq": "modeling_evil.M",
            "WhisperForConditionalGeneration": "modeling_evil.M",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"]},
        "generation_config.json": {"AutoModel": "modeling_evil.M"},
        "processor_config.json": {"AutoProcessor": "modeling_evil.P", "AutoFeatureExtractor": "modeling_evil.P"},
    }
    for name, auto_map in maps.items():
        original = json.loads(Path("model", name).read_text(encoding="utf-8"))
        more = {"auto_map": auto_map, "custom_generate": "model", "trust_remote_code": True}
        Path("model", name).write_text(json.dumps(original | more), encoding="utf-8")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "scheduler.pt"):
        Path("model", name).write_bytes(legacy())
    Path("model", "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "model"}')
    loaded = loading.load_whisper("model", "ja", "transcribe")
    assert torch.equal(loaded.model.proj_out.weight, micro.model.proj_out.weight)
    loaded.model.eval()
    loaded.model.generate(torch.zeros(1, 80, 100), language="ja", task="transcribe")


@pytest.mark.parametrize("made", PICKLES)
def test_a_pickled_audio_cache_is_refused(made: Callable[[], bytes]) -> None:
    Path("evil.arrow").write_bytes(made())
    with pytest.raises(DataError, match=r"evil\.arrow, a cache of decoded audio, is damaged"):
        AudioCache(Path("evil.arrow"))


def test_an_arrow_type_that_pyarrow_would_unpickle_is_refused() -> None:
    """Old pyarrow wrote Python-defined types as pickles; new pyarrow no longer loads them."""
    marked = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": plain()}
    schema = pa.schema([pa.field("name", pa.string(), metadata=marked), pa.field("pcm", pa.large_binary())])
    with pa.ipc.new_file("evil.arrow", schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([{"name": "a", "pcm": b""}], schema))
    with pytest.raises(DataError, match=r"evil\.arrow, a cache of decoded audio, is damaged"):
        AudioCache(Path("evil.arrow"))


@pytest.mark.parametrize("made", PICKLES)
def test_a_pickled_encoder_cache_is_refused(made: Callable[[], bytes]) -> None:
    Path("evil.states").write_bytes(made())
    states = EncoderCache(Path("evil.states"), {"clip": 100}, 8, torch.float32)
    with pytest.raises(DataError, match=r"evil\.states, a cache of encoder outputs, is damaged"):
        states["clip"]


@pytest.mark.parametrize("made", PICKLES)
def test_a_pickled_study_journal_is_refused(made: Callable[[], bytes]) -> None:
    Path("evil.journal").write_bytes(made())
    plugin = SimpleNamespace(study="evil.journal", study_name="kikitori")
    with pytest.raises(SweepError, match=r"hydra\.sweeper\.study=evil\.journal is no Optuna study"):
        optuna_study.open_study(plugin, {}, Path())


BUILDS = "${oc.create:{_target_: os.mkdir, path: executed}}"


@pytest.mark.parametrize(
    "pruner",
    [
        {"_target_": "os.mkdir", "path": "executed"},
        {"_target_": "kikitori.load_whisper", "name": "x"},
        {"_target_": "optuna.samplers.RandomSampler"},
        *({"_target_": "optuna.pruners.HyperbandPruner", "min_resource": "\\" * n + BUILDS} for n in range(4)),
    ],
)
def test_a_study_names_a_pruner_and_nothing_else(pruner: dict[str, Any]) -> None:
    study = optuna.create_study(storage=optuna_study.Journal(Path("study.journal")), study_name="kikitori")
    study.ask()
    study.set_user_attr("pruner", pruner)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=1, callback_metrics={"val/cer": torch.tensor(0.5)})
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.pruner\.(_target_: may be|min_resource: must be)"):
        OptunaPruning("study.journal", "kikitori", 0).on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_a_study_holds_no_state_of_a_sampler() -> None:
    """Optuna's CMA-ES would load a pickle from there."""
    space = {"optim.lr": FloatDistribution(0, 1), "optim.weight_decay": FloatDistribution(0, 1)}
    make = partial(optuna.samplers.CmaEsSampler, n_startup_trials=1)
    study = optuna.create_study(
        storage=optuna_study.Journal(Path("study.journal")), sampler=optuna_study.make_sampler(make, space, 0)
    )
    for kind in ("cma", "sepcma", "cmawm"):
        trial = study.ask(space)
        study._storage.set_trial_system_attr(trial._trial_id, f"{kind}:optimizer:0", plain().hex())
        study.tell(trial, 0.5)
    for _ in range(20):
        study.tell(study.ask(space), 0.5)
    assert study.trials[-1].system_attrs["cma:generation"] > 0
    assert "cma:optimizer:0" not in study.trials[-1].system_attrs


READERS: dict[str, Callable[[Path], Any]] = {
    "sweep.json": lambda path: open_sweep(path.parent, [], "folder"),
    "fitting.json": read_json,
    "results.json": read_json,
    "clip.mp3": decode,
    "clip.wav": decode,
    "clip.opus": decode,
    "release.tar.gz": lambda path: unpack(path, path.parent / "unpacked"),
    "train.tsv": lambda path: list(common_voice.scripted_rows(path.parent, "ja", {"train": "train"})),
    "all.csv": lambda path: manifest.read(str(path), manifest.Columns()),
    "all.tsv": lambda path: manifest.read(str(path), manifest.Columns()),
    "all.jsonl": lambda path: manifest.read(str(path), manifest.Columns()),
}


@pytest.mark.parametrize("made", PICKLES)
@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_place_of_another_file_is_refused(name: str, made: Callable[[], bytes]) -> None:
    Path("folder").mkdir()
    # Without a second line it would be a table with columns and no rows.
    Path("folder", name).write_bytes(made() + b"\nx\n")
    with pytest.raises((KikitoriError, AudioError), match=f"{name}|can be decoded|cut short"):
        READERS[name](Path("folder", name))


def test_a_pickle_in_place_of_an_archive_is_refused() -> None:
    with gzip.open("release.tar.gz", "wb") as file:
        file.write(plain())
    with pytest.raises(DataError, match=r"release\.tar\.gz cannot be unpacked"):
        unpack(Path("release.tar.gz"), Path("target"))


@pytest.mark.parametrize("made", PICKLES)
def test_compare_skips_pickled_files_of_a_run(made: Callable[[], bytes]) -> None:
    for name in ("good", "other"):
        write_run(Path(name))
    for name in ("validation_after.jsonl", "test_after.jsonl", "validation_before.jsonl"):
        Path("good", "predictions", name).write_bytes(made())
    for name in ("sweep.json", "evil/results.json", "other/metrics.csv", "other/progress.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(made())
    tables, failures = build_leaderboards(["."])
    assert tables
    assert [run.status for run in failures] == ["unreadable"]
    assert reader.read_run(Path("good"), "good", {}).predictions("validation") == []


@pytest.mark.parametrize("made", PICKLES)
@pytest.mark.parametrize("name", ["train.pkl", "train.npy", "train.pt", "train.arrow", "train.parquet", "train.tar"])
def test_pickles_in_a_hub_dataset_are_refused(name: str, made: Callable[[], bytes]) -> None:
    Path("dataset").mkdir()
    Path("dataset", name).write_bytes(made())
    refused("dataset")


@pytest.mark.parametrize("member", ["a.pkl", "a.pickle", "a.pyd", "a.pth", "a.npy", "a.npz", "a.cbor"])
def test_a_pickle_inside_a_web_dataset_is_refused(member: str) -> None:
    from recordings import member as header
    from recordings import write_tar

    Path("dataset").mkdir()
    write_tar(Path("dataset", "train.tar"), [(header(member), plain()), (header("a.json"), b"{}")], "w")
    refused("dataset")


@pytest.mark.parametrize("name", ["dataset", "dataset/dataset.py"])
def test_a_loading_script_is_refused(name: str) -> None:
    Path("dataset").mkdir()
    Path("dataset", "dataset.py").write_text(CODE)
    Path("dataset", "__init__.py").write_text(CODE)
    write_csv(Path("dataset", "train.csv"), [{"transcription": "a"}])
    refused(name)


def test_a_script_and_pickles_next_to_good_recordings_are_refused() -> None:
    for split in ("train", "validation", "test"):
        write_clip(Path("dataset", split, "0.wav"))
        write_csv(Path("dataset", split, "metadata.csv"), [{"file_name": "0.wav", "transcription": "零"}])
    for name in ("dataset.py", "train/train.py", "state.pkl", "dataset_info.json"):
        Path("dataset", name).write_bytes(CODE.encode() if name.endswith("py") else plain())
    Path("dataset", "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: state.pkl\n---\n")
    refused("dataset")


def refused(name: str) -> None:
    splits = {"train": "train", "validation": "validation", "test": "test"}
    with pytest.raises(DataError, match=f"data.name={name}"):
        hub.read(name, None, None, splits, "audio", "transcription", None)


def test_a_release_whose_clips_are_pickles_is_not_decoded() -> None:
    folder = write_common_voice(Path("ja"), {"train": 2, "dev": 1, "test": 1})
    for path in folder.glob("clips/*.mp3"):
        path.write_bytes(plain())
    for clip in common_voice.read("ja", "ja", ["train"], Path("cache")).clips:
        with pytest.raises(AudioError, match="can be decoded"):
            decode(clip.source)  # type: ignore[arg-type]


def test_a_torchscript_archive_is_refused_as_a_checkpoint() -> None:
    """A file in torch's zip format may contain a script instead of weights."""
    with zipfile.ZipFile("evil.ckpt", "w") as file:
        file.writestr("archive/data.pkl", plain())
        file.writestr("archive/version", "3")
        file.writestr("archive/code/evil.py", CODE)
        file.writestr("archive/constants.pkl", plain())
    model, data = {"language": "ja", "task": "transcribe"}, {"language": "ja"}
    cfg = OmegaConf.create({"checkpoint": "evil.ckpt", "model": model, "data": data})
    with pytest.raises(DataError, match=r"evil\.ckpt is damaged, or holds more than weights and plain values"):
        load_checkpoint(cfg)
    assert "evil" not in sys.modules
