"""What `kikitori train` finds before it scores anything."""

from types import SimpleNamespace
from typing import Any

import pytest

from kikitori.model.loading import build_whisper
from kikitori.pipelines.train import make_module
from kikitori.runtime.errors import ConfigError


def test_layers_that_are_left_out_at_random_are_refused_on_several_devices_before_any_clip_is_read() -> None:
    nothing: Any = None
    two: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ConfigError, match=r"model\.encoder_layerdrop=0\.1 is not supported on 2 devices"):
        make_module(nothing, two, nothing, build_whisper(32, 1, 1, 2, encoder_layerdrop=0.1))
