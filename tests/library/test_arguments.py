"""Wrong arguments of `import kikitori`: one line that names the argument, its value and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import write_common_voice

import kikitori
from kikitori.audio.formats import AudioError
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError, ModelError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 0}, r"data\.global_batch_size=0: must be a whole number above 0"),
        ({"global_batch_size": "8"}, r"data\.global_batch_size=8: must be a whole number above 0"),
        ({"micro_batch_size": 0}, r"data\.micro_batch_size=0: must be a whole number above 0"),
        ({"micro_batch_size": "large"}, r"data\.micro_batch_size=large: must be a whole number above 0"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size=-1: must be a whole number above 0"),
        ({"num_workers": -1}, r"data\.num_workers=-1: must be a whole number, not below 0"),
        ({"full_window_share": 1.5}, r"data\.full_window_share=1\.5: must be a number between 0 and 1"),
        ({"max_reject_rate": -0.1}, r"data\.max_reject_rate=-0\.1: must be a number between 0 and 1"),
        ({"max_duration_s": 0}, r"data\.max_duration_s=0: must be a number above 0"),
        ({"min_duration_s": -1}, r"data\.min_duration_s=-1: must be a number, not below 0"),
        ({"limit": 5}, r"data\.limit=5: must be a mapping, such as \{'train': 5\}"),
        ({"limit": {"train": 0}}, r"data\.limit\.train=0: must be a whole number above 0"),
        ({"load_splits": ["val"]}, r"load_splits has no 'val'; the splits are train, validation, test"),
    ],
)
def test_a_value_that_the_command_line_refuses_is_refused_by_a_data_module(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        kikitori.Demo(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, r"optim\.lr=0: must be a number above 0"),
        ({"lr": "1e-4"}, r"optim\.lr=1e-4: must be a number above 0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps=-1: must be a whole number, not below 0"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay=-0\.1: must be a number, not below 0"),
    ],
)
def test_a_value_that_the_command_line_refuses_is_refused_by_adamw(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kikitori.adamw(**arguments)


def test_a_split_that_does_not_exist_or_was_not_read_is_named(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", {"train": 4, "dev": 2, "test": 2})
    data = kikitori.CommonVoice(str(folder), processor=micro.processor, load_splits=["train", "test"])
    wrong: Any = "val"
    for call in (data.dataset, data.score_dataloader, data.scored):
        with pytest.raises(ConfigError, match="there is no split 'val'; this data module has train, test"):
            call(wrong)
    with pytest.raises(ConfigError, match="there is no split 'validation'; this data module has train, test"):
        data.val_dataloader()


def test_a_module_takes_a_whisper_an_optimizer_factory_and_sizes_by_window(micro: Whisper) -> None:
    make: Any = kikitori.WhisperModule
    with pytest.raises(TypeError, match=r"got the str 'openai/whisper-tiny'; pass kikitori\.load_whisper\('openai/w"):
        make("openai/whisper-tiny")
    with pytest.raises(TypeError, match=r"takes a Whisper, got WhisperForConditionalGeneration; .*load_whisper"):
        make(micro.model)
    for wrong in (torch.optim.AdamW(micro.model.parameters()), torch.optim.AdamW):
        with pytest.raises(TypeError, match=r"make_optimizer must be a function .* got .*AdamW; pass kikitori\.adamw"):
            make(micro, wrong)
    with pytest.raises(TypeError, match=r"got the function adamw itself; pass kikitori\.adamw\(lr=1e-5\)"):
        make(micro, kikitori.adamw)
    with pytest.raises(TypeError, match=r"micro_batch_sizes=4: .* such as \{100: 4\}; .*micro_batch_size=4"):
        make(micro, micro_batch_sizes=4)
    with pytest.raises(ConfigError, match=r"micro_batch_sizes\.100=0: must be a whole number above 0"):
        make(micro, micro_batch_sizes={100: 0})


def test_transcribe_takes_a_whisper_and_float_samples(micro: Whisper, tmp_path: Path) -> None:
    call: Any = kikitori.transcribe
    with pytest.raises(TypeError, match=r"transcribe takes a Whisper, got WhisperModule; pass module\.whisper"):
        call(kikitori.WhisperModule(micro), torch.zeros(16_000))
    with pytest.raises(
        TypeError, match=r"transcribe takes a Whisper, got the str 'openai/whisper-tiny'; pass kikitori"
    ):
        call("openai/whisper-tiny", torch.zeros(16_000))
    for samples in (torch.zeros(16_000, dtype=torch.int16), torch.zeros(16_000, dtype=torch.int16).numpy()):
        with pytest.raises(ValueError, match=r"samples are torch\.int16; .* float in \[-1, 1\].* samples / 32768"):
            call(micro, samples)
    double = torch.zeros(16_000, dtype=torch.float64).numpy()
    assert call(micro, double) == call(micro, torch.zeros(16_000))
    with pytest.raises(AudioError, match=r"gone\.mp3: does not exist; give an audio file"):
        call(micro, tmp_path / "gone.mp3")
    with pytest.raises(AudioError, match=r": is a folder; give an audio file"):
        call(micro, tmp_path)


def test_an_unknown_argument_of_a_model_is_named(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    with pytest.raises(ModelError, match=r"load_whisper has no argument drop_out, .*; did you mean dropout\?"):
        kikitori.load_whisper(str(tmp_path), drop_out=0.1)
    with pytest.raises(ModelError, match="build_whisper has no argument unknown_keyword, and WhisperConfig no such"):
        kikitori.build_whisper(unknown_keyword=1)
    assert kikitori.load_whisper(str(tmp_path), dropout=0.1, mask_time_prob=0.05).model.config.dropout == 0.1
