import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from kikitori.data.collate import IGNORE_INDEX
from kikitori.model.whisper import Whisper, encode
from kikitori.training import loss
from kikitori.training.loss import clip_losses, token_losses

LABELS = torch.tensor(
    [
        [5, 6, 7, 8, 9],
        [5, 6, 7, IGNORE_INDEX, IGNORE_INDEX],
        [5, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
    ]
)


@pytest.mark.parametrize("at_once", [1, 4, 1024])
def test_losses_and_gradients_equal_the_stock_models(
    micro: Whisper, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", at_once)
    stock_model, features = copy.deepcopy(micro.model), torch.randn(3, 80, 100)
    stock = stock_model(input_features=features.clone(), labels=LABELS)
    stock.loss.backward()
    losses = clip_losses(micro.model, encode(micro.model, features), LABELS)
    (losses.sum() / (LABELS != IGNORE_INDEX).sum()).backward()
    expected = cross_entropy(stock.logits.flatten(0, 1), LABELS.flatten(), reduction="none").view(3, -1).sum(dim=1)
    torch.testing.assert_close(losses, expected)
    for (name, parameter), other in zip(micro.model.named_parameters(), stock_model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.parametrize("at_once", [2, 1024])
def test_smoothed_losses_and_gradients_equal_torchs(
    micro: Whisper, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", at_once)
    stock_model, features = copy.deepcopy(micro.model), torch.randn(3, 80, 100)
    logits = stock_model(input_features=features.clone(), labels=LABELS).logits.flatten(0, 1)
    expected = cross_entropy(logits, LABELS.flatten(), reduction="none", label_smoothing=0.1).view(3, -1).sum(dim=1)
    losses = clip_losses(micro.model, encode(micro.model, features), LABELS, label_smoothing=0.1)
    torch.testing.assert_close(losses, expected)
    assert not torch.allclose(losses, clip_losses(micro.model, encode(micro.model, features), LABELS))
    expected.sum().backward()
    losses.sum().backward()
    for (name, parameter), other in zip(micro.model.named_parameters(), stock_model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_a_smoothed_loss_of_a_token_is_that_of_the_formula() -> None:
    """(1 - share) of the target's loss, and share of the mean over the vocabulary."""
    projection, states, targets = torch.nn.Linear(4, 16), torch.randn(3, 4), torch.tensor([1, 5, 15])
    log_shares = projection(states).log_softmax(dim=1)
    expected = -0.8 * log_shares[torch.arange(3), targets] - 0.2 * log_shares.mean(dim=1)
    torch.testing.assert_close(token_losses(states, projection, targets, 0.2), expected)


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", 8)
    made: list[int] = []
    projection = torch.nn.Linear(4, 16)
    projection.register_forward_hook(lambda module, inputs, output: made.append(len(output)))
    states = torch.randn(20, 4, requires_grad=True)
    token_losses(states, projection, torch.arange(20) % 16).sum().backward()
    assert made == [8, 8, 4, 4, 8, 8]
