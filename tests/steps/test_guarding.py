"""The recordings that a run's guard reads."""

from types import SimpleNamespace
from typing import Any

import pytest

from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError
from kikitori.steps import guarding


@pytest.mark.parametrize(("language", "code"), [("zh-CN", "zh"), ("German", "de")])
def test_a_set_of_the_users_is_read_in_whispers_code_of_its_language(
    micro: Whisper, monkeypatch: pytest.MonkeyPatch, language: str, code: str
) -> None:
    data = SimpleNamespace(language=language, with_processor=lambda processor: SimpleNamespace(processor=processor))
    found: list[Any] = []
    monkeypatch.setattr(guarding, "instantiate", lambda *arguments, **more: data)
    monkeypatch.setattr(guarding, "speech_of", lambda *arguments: found.extend(arguments) or [])
    guarding.others("more", {"_target_": "kikitori.Demo"}, 2, micro.processor)
    assert found[0].processor.language == found[-1] == code
    assert found[0].processor.prefix[1] == micro.processor.tokenizer.convert_tokens_to_ids(f"<|{code}|>")


def test_a_guard_without_the_splits_that_it_reads_is_refused(micro: Whisper) -> None:
    run = SimpleNamespace(config={"guard": {"clips": 2, "sets": {}}})
    data = SimpleNamespace(splits=["train"])
    with pytest.raises(ConfigError, match=r"splits: the guard reads clips of test or validation, got \['train'\]; add"):
        guarding.make_guard(run, None, data, micro.processor)  # type: ignore[arg-type]
