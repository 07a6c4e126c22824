from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import BaseModelOutput

from kikitori.audio import waveform
from kikitori.inference.greedy import greedy
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper

D_MODEL, ROOM = 32, 60


def talkative(seed: int) -> Whisper:
    """Makes a micro model that generates many different tokens and ends at different lengths.

    With this initialisation the end token is never likely, so its embedding is replaced.
    """
    torch.manual_seed(seed)
    sizes = {"d_model": D_MODEL, "encoder_layers": 1, "decoder_layers": 2, "attention_heads": 2, "window_s": 1}
    whisper = build_whisper(**sizes, language="ja", task="transcribe", max_label_tokens=ROOM + 4, init_std=0.5)
    end = whisper.model.generation_config.eos_token_id
    whisper.model.model.decoder.embed_tokens.weight.data[end] = torch.randn(D_MODEL)
    whisper.model.eval()
    return whisper


def encoded(batch: int, positions: int = 50) -> Tensor:
    return 3 * torch.randn(batch, positions, D_MODEL)


def decode(whisper: Whisper, states: Tensor, limits: Sequence[int]) -> list[list[int]]:
    """Returns the tokens of each row up to its limit, each token taking a second."""
    seconds = [limit - 0.5 for limit in limits]
    rows = greedy(whisper.model, states, whisper.processor.prefix, 10_000, lambda token: 1.0, seconds)
    for row, limit in zip(rows, limits, strict=True):
        assert row.ended == (len(row.tokens) < min(limit, ROOM))
    return [row.tokens for row in rows]


def reference(whisper: Whisper, states: Tensor, limit: int) -> list[list[int]]:
    """Returns the tokens of generate, without padding."""
    outputs = BaseModelOutput(last_hidden_state=states)
    rows = whisper.model.generate(encoder_outputs=outputs, language="ja", task="transcribe", max_new_tokens=limit)
    end = whisper.model.generation_config.eos_token_id
    return [[token for token in row if token != end] for row in rows.tolist()]


@pytest.mark.parametrize("batch", [1, 2, 7, 12])
@pytest.mark.parametrize("limit", [1, 2, 9, ROOM])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tokens_equal_those_of_generate(batch: int, limit: int, seed: int) -> None:
    whisper = talkative(seed)
    states = encoded(batch)
    assert decode(whisper, states, [limit] * batch) == reference(whisper, states, limit)


def test_the_models_of_these_tests_end_rows_at_many_steps_and_generate_many_tokens() -> None:
    rows = decode(talkative(0), encoded(12), [ROOM] * 12)
    assert len({len(row) for row in rows}) > 4
    assert len({token for row in rows for token in row}) > 50


@pytest.mark.parametrize("positions", [1, 13, 50])
def test_any_number_of_positions_works(positions: int) -> None:
    whisper = talkative(3)
    states = encoded(5, positions)
    assert decode(whisper, states, [ROOM] * 5) == reference(whisper, states, ROOM)


def test_suppressed_tokens_are_never_generated_and_some_not_as_the_first() -> None:
    whisper = talkative(4)
    config = whisper.model.generation_config
    states = encoded(8)
    free = decode(whisper, states, [ROOM] * 8)
    config.begin_suppress_tokens = [*{row[0] for row in free if row}, config.eos_token_id]
    config.suppress_tokens = sorted({token for row in free for token in row[1:]} - {row[0] for row in free if row})[::2]
    rows = decode(whisper, states, [ROOM] * 8)
    assert rows == reference(whisper, states, ROOM)
    assert all(row[0] not in config.begin_suppress_tokens for row in rows)
    assert any(token in config.begin_suppress_tokens for row in rows for token in row)
    assert not {token for row in rows for token in row} & set(config.suppress_tokens)


def test_a_model_without_suppressed_tokens_works() -> None:
    whisper = talkative(5)
    whisper.model.generation_config.begin_suppress_tokens = whisper.model.generation_config.suppress_tokens = None
    states = encoded(8)
    assert decode(whisper, states, [ROOM] * 8) == reference(whisper, states, ROOM)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), limits=st.lists(st.integers(1, ROOM), min_size=1, max_size=9))
def test_a_row_equals_what_generate_returns_for_it_alone_up_to_its_own_limit(seed: int, limits: list[int]) -> None:
    whisper = talkative(seed)
    states = encoded(len(limits))
    before = states.clone()
    alone = [reference(whisper, states[i : i + 1], limit)[0] for i, limit in enumerate(limits)]
    assert decode(whisper, states, limits) == alone
    assert torch.equal(states, before)


def test_a_limit_beyond_the_decoders_context_is_the_context() -> None:
    whisper = talkative(6)
    states = encoded(12)
    rows = decode(whisper, states, [10_000] * 12)
    assert max(len(row) for row in rows) == ROOM
    assert rows == reference(whisper, states, ROOM)


def test_an_empty_batch_gives_no_rows() -> None:
    assert decode(talkative(0), encoded(0), []) == []


def test_a_row_that_has_ended_is_not_computed_any_further() -> None:
    whisper = talkative(0)
    computed: list[int] = []
    whisper.model.proj_out.register_forward_hook(lambda module, inputs, output: computed.append(len(output)))
    limits = [3, ROOM, 9, 1, ROOM, 7]
    rows = decode(whisper, encoded(6), limits)
    # The end token takes a step, too, if the limit allows one more.
    steps = [min(len(row) + 1, limit) for row, limit in zip(rows, limits, strict=True)]
    # The first output is that of the start token, for the probability that there is no speech.
    assert computed[1:] == [sum(step > i for step in steps) for i in range(max(steps))]


def test_the_maximum_counts_the_end_token() -> None:
    whisper = talkative(0)
    states = encoded(12)
    for limit in (1, 9, ROOM, 10_000):
        rows = greedy(whisper.model, states, whisper.processor.prefix, limit)
        assert [row.tokens for row in rows] == reference(whisper, states, min(limit, ROOM))
        assert [row.ended for row in rows] == [len(row.tokens) < min(limit, ROOM) for row in rows]


def test_probabilities_are_those_of_a_forward_pass() -> None:
    whisper = talkative(1)
    model, prefix, states = whisper.model, whisper.processor.prefix, encoded(5)
    for row, state in zip(greedy(model, states, prefix, ROOM), states, strict=True):
        tokens = [*row.tokens, *([model.generation_config.eos_token_id] if row.ended else [])]
        inputs = torch.tensor([[*prefix, *tokens[:-1]]])
        outputs = BaseModelOutput(last_hidden_state=state[None])
        with torch.no_grad():
            logits = model(encoder_outputs=outputs, decoder_input_ids=inputs).logits[0]
        no_speech = whisper.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
        assert row.no_speech == pytest.approx(float(logits[0].softmax(0)[no_speech]), rel=1e-3)
        logits = logits[len(prefix) - 1 :]
        logits[0, model.generation_config.begin_suppress_tokens] = -torch.inf
        chosen = logits.log_softmax(1).gather(1, torch.tensor(tokens)[:, None])
        assert row.logprob == pytest.approx(float(chosen.sum()), rel=1e-3)


def test_a_loop_is_stopped_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that generates the same three tokens again and again."""
    whisper = build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=200)
    unit = whisper.processor.tokenizer.encode("んん", add_special_tokens=False)[:3]
    at = iter(unit * 200)
    vocabulary = whisper.model.config.vocab_size

    def next_of_unit(states: Tensor) -> Tensor:
        return torch.eye(vocabulary)[next(at)].expand(len(states), -1).clone()

    states, prefix = encoded(1), whisper.processor.prefix
    whisper.model.eval()
    monkeypatch.setattr(whisper.model.proj_out, "forward", next_of_unit)
    (row,) = greedy(whisper.model, states, prefix, 100, stop_loops=True)
    assert (len(row.tokens), row.ended) == (48, False)
    (row,) = greedy(whisper.model, states, prefix, 100)
    assert (len(row.tokens), row.ended) == (100, False)


def test_no_graph_for_gradients_is_built() -> None:
    whisper = talkative(0)
    recorded: list[bool] = []
    whisper.model.proj_out.register_forward_hook(lambda module, inputs, output: recorded.append(output.requires_grad))
    with torch.enable_grad():
        decode(whisper, encoded(2), [3, 3])
    assert recorded
    assert not any(recorded)


class Casts(TorchDispatchMode):
    """Counts the casts of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cast = function is torch.ops.aten._to_copy.default
        self.count += cast and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_autocast_casts_a_weight_once_under_lightnings_precision_plugin() -> None:
    whisper = talkative(0)
    with torch.inference_mode(), MixedPrecision("bf16-mixed", "cpu").forward_context():
        states = encoded(3)
        with Casts(whisper.model.proj_out.weight.shape) as casts:
            rows = decode(whisper, states, [ROOM] * 3)
    assert max(len(row) for row in rows) > 5
    assert casts.count == 1


@pytest.mark.slow
def test_real_whisper_base_transcribes_real_clips_as_generate_does(whisper_base: Whisper, speech: Path) -> None:
    model, processor = whisper_base.model.eval(), whisper_base.processor
    clips = sorted((speech / "clips").glob("*.mp3"))
    limit = model.generation_config.max_new_tokens
    for i in range(0, len(clips), 12):
        features = [processor.log_mel(waveform.decode(clip.read_bytes())) for clip in clips[i : i + 12]]
        with torch.inference_mode():
            states = model.model.encoder(torch.stack(features)).last_hidden_state
        assert states.shape[1] == 1500
        rows = decode(whisper_base, states, [limit] * len(states))
        assert any(rows)
        assert rows == reference(whisper_base, states, limit)
