"""Optimizers: which weights each takes, what it does to them, its state, and settings that change on a resume."""

import copy
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from kikitori.model.whisper import Whisper
from kikitori.optim import optimizers
from kikitori.optim.composed import ComposedOptimizer
from kikitori.optim.optimizers import adamw, adamw8bit, muon, parameter_groups, reconfigure
from kikitori.runtime.errors import ConfigError

has_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
KINDS = [adamw, muon, pytest.param(adamw8bit, marks=has_bitsandbytes)]


def test_norms_and_biases_do_not_decay(micro: Whisper) -> None:
    decayed, spared = parameter_groups(micro.model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in micro.model.named_parameters()}
    assert all("norm" not in names[id(p)] and not names[id(p)].endswith("bias") for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in spared["params"])
    trainable = [p for p in micro.model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trainable)


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [0, 1]


def test_the_scheduler_moves_the_learning_rate_once_a_step() -> None:
    model = nn.Linear(2, 2)
    optimizer, scheduler = adamw(1.0, 0.0, (0.9, 0.99), 2, "linear")(model, 10)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1.0, 7 / 8])


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_setting_applies_after_a_restore(kind: Any) -> None:
    """A run resumed with another learning rate, or more steps, must not keep those of its saved states."""

    def make(lr: float, max_steps: int) -> tuple[Any, Any]:
        return kind(lr=lr, weight_decay=0.1, warmup_steps=2)(nn.Linear(2, 2), max_steps)

    def advanced(optimizer: Any, scheduler: Any, steps: int) -> float:
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return optimizer.param_groups[0]["lr"]

    before = make(1e-3, 10)
    advanced(*before, 4)
    for lr, max_steps in ((1e-3, 10), (3e-3, 10), (1e-3, 20)):
        optimizer, scheduler = make(lr, max_steps)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(before[0].state_dict()))
        scheduler.load_state_dict(before[1].state_dict())
        reconfigure(optimizer, scheduler, settings)
        never_stopped = make(lr, max_steps)
        assert optimizer.param_groups[0]["lr"] == advanced(*never_stopped, 4)
        assert advanced(optimizer, scheduler, 3) == advanced(*never_stopped, 3)


def trained(model: nn.Module, optimizer: Any, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """The weights after some steps with given gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if parameter.requires_grad else None
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def names_of(model: nn.Module, part: Any) -> set[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {known[id(p)] for group in part.param_groups for p in group["params"]}


def test_muon_takes_the_matrices_of_linear_layers_and_adamw_all_else(micro: Whisper) -> None:
    model = micro.model
    model.model.encoder.layers[0].fc1.weight.requires_grad_(False)
    optimizer: Any = muon(weight_decay=0.1)(model, 10)[0]
    matrices, others = (names_of(model, part) for part in optimizer.parts)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    expected = {f"{name}.weight" for name in layers} - {"proj_out.weight", "model.encoder.layers.0.fc1.weight"}
    assert matrices == expected
    assert others == {name for name, p in model.named_parameters() if p.requires_grad} - expected
    assert {"model.decoder.embed_tokens.weight", "model.encoder.conv1.weight"} <= others
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_muon_equals_torchs_muon_beside_torchs_adamw(micro: Whisper) -> None:
    other = copy.deepcopy(micro.model)
    mine: Any = muon(lr=1e-2, weight_decay=0.1, schedule="constant", warmup_steps=0)(micro.model, 10)[0]
    names = names_of(micro.model, mine.parts[0])
    matrices = [p for name, p in other.named_parameters() if name in names]
    groups = parameter_groups(other, 0.1)
    for group in groups:
        group["params"] = [p for p in group["params"] if all(p is not matrix for matrix in matrices)]
    theirs = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), fused=True),
    ]
    before = [p.detach().clone() for p in other.parameters()]
    for seed in range(3):
        trained(other, theirs[0], 1, seed)
        theirs[1].step()
        trained(micro.model, mine, 1, seed)
    for one, two, start in zip(micro.model.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, start) is not one.requires_grad


def test_an_update_of_muon_is_about_as_large_as_one_of_adamw() -> None:
    """By which it takes AdamW's learning rate."""
    torch.manual_seed(0)
    sizes = {}
    for kind in (adamw, muon):
        model = nn.Linear(256, 64, bias=False)
        before = model.weight.detach().clone()
        trained(model, kind(lr=1.0, weight_decay=0.0, schedule="constant", warmup_steps=0)(model, 10)[0], 20)
        sizes[kind.__name__] = float((model.weight.detach() - before).pow(2).mean().sqrt()) / 20
    assert 0.3 < sizes["muon"] / sizes["adamw"] < 3


@has_bitsandbytes
def test_the_moments_of_large_matrices_are_in_8_bits_and_those_of_embeddings_in_32(micro: Whisper) -> None:
    optimizer: Any = adamw8bit(lr=1e-3)(micro.model, 10)[0]
    trained(micro.model, optimizer, 2)
    eight, others = optimizer.parts
    kinds = {p.numel() >= 4096: eight.state[p]["state1"].dtype for group in eight.param_groups for p in group["params"]}
    assert kinds == {True: torch.uint8, False: torch.float32}
    assert micro.model.model.decoder.embed_tokens.weight.numel() > 4096
    assert {state["exp_avg"].dtype for state in others.state.values()} == {torch.float32}
    assert "model.decoder.embed_tokens.weight" in names_of(micro.model, others)


@has_bitsandbytes
def test_adamw_in_8_bits_moves_weights_nearly_as_adamw_does() -> None:
    moved = {}
    for kind in (adamw, adamw8bit):
        torch.manual_seed(0)
        model = nn.Linear(128, 64)
        before = [p.detach().clone() for p in model.parameters()]
        after = trained(model, kind(lr=1e-2, schedule="constant", warmup_steps=0)(model, 10)[0], 10)
        moved[kind.__name__] = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert torch.nn.functional.cosine_similarity(moved["adamw"], moved["adamw8bit"], dim=0) > 0.99
    assert not torch.equal(moved["adamw"], moved["adamw8bit"])


@has_bitsandbytes
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state1", torch.zeros(10, dtype=torch.uint8)),
        ("state2", torch.zeros(1, dtype=torch.uint8).expand(64, 128)),
        ("state1", torch.zeros(64, 128)),
        ("absmax1", torch.zeros(1)),
        ("qmap2", torch.zeros(3)),
        ("state1", torch.zeros(64, 128, dtype=torch.int8)),
    ],
)
def test_a_state_in_8_bits_of_another_size_is_refused(name: str, value: Any) -> None:
    """The kernels for GPUs would read and write beyond it."""
    model = nn.Linear(128, 64)
    optimizer: Any = adamw8bit()(model, 10)[0]
    trained(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    state = saved["parts"][0]["state"][0]
    place = state if name in state else next(kept for kept in state.values() if isinstance(kept, dict))
    assert name in place
    place[name] = value
    with pytest.raises(ValueError, match=r"of shape .* not |the moments are"):
        optimizer.load_state_dict(saved)


def test_adamw_in_8_bits_names_the_extra_if_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes: pip install 'kikitori\[bitsandbytes\]'"):
        adamw8bit()


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_continues_to_the_bit(micro: Whisper, kind: Any) -> None:
    def make(model: nn.Module) -> Any:
        return kind(lr=1e-2, schedule="constant", warmup_steps=0)(model, 10)[0]

    first = make(micro.model)
    trained(micro.model, first, 3)
    other = copy.deepcopy(micro.model)
    second = make(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    pairs = zip(trained(micro.model, first, 3, 1), trained(other, second, 3, 1), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_parts_share_their_groups_with_the_whole_also_after_a_restore() -> None:
    model = nn.Linear(2, 2)
    optimizer: Any = muon()(model, 10)[0]
    trained(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert isinstance(optimizer, ComposedOptimizer)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.5] * 3


def test_a_closure_computes_the_gradients_before_all_parts_step() -> None:
    model = nn.Linear(2, 2)
    optimizer: Any = muon(lr=1e-1, schedule="constant", warmup_steps=0)(model, 10)[0]
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> torch.Tensor:
        loss = model(torch.ones(1, 2)).pow(2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert not any(torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (muon, {"momentum": 1.0}, r"optim\.momentum=1\.0: must be a number from 0 to below 1"),
        (muon, {"momentum": -0.1}, r"optim\.momentum=-0\.1: must be a number from 0 to below 1"),
        (muon, {"lr": 0}, r"optim\.lr=0: must be a number above 0"),
    ],
)
def test_a_wrong_value_is_named(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_the_function_itself_is_no_factory() -> None:
    with pytest.raises(TypeError, match="got the function muon itself"):
        optimizers.check_factory(muon)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.98), (float("nan"), 0.98)])
def test_betas_are_from_0_to_below_1(betas: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas=.*: must be two numbers from 0 to below 1"):
        adamw(betas=betas)
