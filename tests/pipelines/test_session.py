"""What a run records about the machine it computes on."""

import pytest
import torch

from kikitori.pipelines.session import _record_environment


def test_a_resumed_run_names_what_changes_its_last_digits(caplog: pytest.LogCaptureFixture) -> None:
    results: dict = {}
    _record_environment(results, {"deterministic": True})
    first = dict(results["environment"])
    assert first["threads"] == torch.get_num_threads()
    assert first["deterministic"] is True
    _record_environment(results, {"deterministic": True})
    # A run of an earlier version recorded nothing.
    _record_environment({"environment": {}}, {"deterministic": True})
    assert caplog.text == ""
    results["environment"]["threads"] += 1
    _record_environment(results, {"deterministic": True})
    assert f"threads was {first['threads'] + 1} and is {first['threads']} now: the weights will differ" in caplog.text
    assert results["environment"] == first
