"""What an adapter is: its kind, rank and scale, and the linear layers that it changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, sqrt
from typing import Any, ClassVar, Literal

from kikitori.runtime.errors import (
    ConfigError,
    ModelError,
    check_above_zero,
    check_fraction,
    check_not_negative,
    one_line,
)

# Far above what helps: a matrix of rank 1,024 and its counterpart are as large as a layer of whisper-small.
MAX_RANK = 1_024
# In which the base's weights may be stored; None: as they are.
BASE_BITS = (None, 8, 4)
# Why ema.decay is refused with AdaLoRA.
NO_AVERAGE = (
    "the average would keep what adapter=adalora has pruned; set ema.decay to null, or choose lora, rslora or dora"
)
# The linear layers of a Whisper's encoder and decoder layers. Both have self_attn; encoder_attn is the decoder's
# attention to the encoder's outputs.
ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2")
TARGETS = (
    *ATTENTION,
    *FEED_FORWARD,
    *(f"{block}.{name}" for block in ("self_attn", "encoder_attn") for name in ATTENTION),
)


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al. 2021): adds scale * B A to each target, A (rank, inputs) random and B (outputs, rank) zero.

    rank: of both matrices. alpha: the scale is alpha / rank. dropout: of what A reads, in training. targets: names of
    linear layers, see TARGETS; a name without its block stands for that of every block.
    kind: lora; rslora, with a scale of alpha / sqrt(rank) (Kalajdzievski 2023); or dora, which also trains the norm of
    each output's weights (Liu et al. 2024). base_bits: in which the weights of the model's linear layers are stored, 8
    or 4 (QLoRA, Dettmers et al. 2023); None for 32.
    Raises ConfigError for a value that is out of range.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: Sequence[str] = ("q_proj", "v_proj")
    kind: Literal["lora", "rslora", "dora"] = "lora"
    base_bits: Literal[4, 8] | None = None

    KINDS: ClassVar[tuple[str, ...]] = ("lora", "rslora", "dora")

    def __post_init__(self) -> None:
        check_above_zero("adapter", {"rank": self.rank}, whole=True)
        check_above_zero("adapter", {"alpha": self.alpha})
        check_fraction("adapter", {"dropout": self.dropout})
        if self.rank > MAX_RANK:
            raise ConfigError(f"adapter.rank={self.rank}: must be at most {MAX_RANK}")
        if self.kind not in self.KINDS:
            raise ConfigError(f"adapter.kind={self.kind}: must be {' or '.join(self.KINDS)}")
        if self.base_bits not in BASE_BITS:
            raise ConfigError(f"adapter.base_bits={self.base_bits}: must be 8, 4 or null")
        if fault := targets_fault(self.targets):
            raise ConfigError(f"adapter.targets: {fault}")

    @property
    def matrix_rank(self) -> int:
        """The rank of the matrices as they are made."""
        return self.rank

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return scale_of(self.kind, self.alpha, self.matrix_rank)

    def as_plain(self) -> dict[str, Any]:
        """Returns plain values for `adapter_from_plain`, which checkpoints hold."""
        return {**asdict(self), "targets": list(self.targets)}


@dataclass(frozen=True)
class AdaLora(Lora):
    """AdaLoRA (Zhang et al. 2023): adds scale * B E A, E diagonal, and prunes E so that important layers keep ranks.

    rank: the mean over all targets that is left. initial_rank: of each target at the beginning; None for 1.5 times the
    rank. The scale is alpha / initial_rank. warmup_share and final_share: of the training's steps, without pruning at
    the beginning and with the final ranks at the end. every_steps: between two prunings. orthogonality: the weight of
    the penalty that keeps A and B orthogonal, which is not part of the reported loss.
    """

    kind: Literal["adalora"] = "adalora"  # type: ignore[assignment]
    initial_rank: int | None = None
    warmup_share: float = 0.1
    final_share: float = 0.3
    every_steps: int = 10
    orthogonality: float = 0.5

    KINDS: ClassVar[tuple[str, ...]] = ("adalora",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("adapter", {"every_steps": self.every_steps}, whole=True)
        check_not_negative("adapter", {"orthogonality": self.orthogonality})
        shares = {"warmup_share": self.warmup_share, "final_share": self.final_share}
        check_fraction("adapter", shares)
        if sum(shares.values()) >= 1:
            raise ConfigError(
                f"adapter.warmup_share={self.warmup_share}, adapter.final_share={self.final_share}: must be below 1 "
                "together, so that steps are left in which ranks are pruned"
            )
        if self.initial_rank is not None:
            check_above_zero("adapter", {"initial_rank": self.initial_rank}, whole=True)
            if not self.rank < self.initial_rank <= MAX_RANK:
                raise ConfigError(
                    f"adapter.initial_rank={self.initial_rank}: must be above adapter.rank={self.rank} and at most "
                    f"{MAX_RANK}; null takes 1.5 times the rank"
                )

    @property
    def matrix_rank(self) -> int:
        return self.initial_rank or ceil(1.5 * self.rank)


def scale_of(kind: str, alpha: float, rank: int) -> float:
    """The factor of an adapter's product of matrices, by its kind."""
    # 1e-5 as in the authors' code and in peft, so that a rank of 0 is no division by zero.
    return alpha / {"rslora": sqrt(rank), "adalora": rank + 1e-5}.get(kind, rank)


def targets_fault(targets: Any) -> str:
    """What is wrong with the names of targets; empty if nothing is."""
    if not isinstance(targets, list | tuple) or not targets:
        return f"must be a list of names of linear layers, got {targets!r}; there are {', '.join(TARGETS)}"
    unknown = [str(name) for name in targets if name not in TARGETS]
    return f"Whisper has no linear layer {', '.join(unknown)}; there are {', '.join(TARGETS)}" if unknown else ""


def adapter_from_plain(values: Any) -> tuple[Lora, list[str]]:
    """Returns the settings and the names of the layers that a checkpoint's recipe holds.

    Raises ModelError for anything that kikitori does not write.
    """
    cls = AdaLora if isinstance(values, Mapping) and values.get("kind") == "adalora" else Lora
    try:
        rest = {key: value for key, value in values.items() if key != "modules"}
        if unknown := rest.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"unknown {min(unknown)}")
        return cls(**rest), [str(name) for name in values["modules"]]
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the checkpoint's recipe has no usable adapter: {one_line(error)}") from error
