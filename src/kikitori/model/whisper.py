"""A Whisper model with its processor: generation settings, windows, saving, and an encoder for any window length."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from transformers import WhisperForConditionalGeneration

from kikitori.adapters.folder import save_adapter
from kikitori.adapters.layers import inject, matching, merge
from kikitori.adapters.quantised import quantised_layers
from kikitori.adapters.settings import Lora
from kikitori.model.limits import GENERATION, checked, timestamp_facts, trained_on
from kikitori.model.processor import WINDOW_KEY, Processor
from kikitori.model.saving import save_model
from kikitori.model.source import resolved
from kikitori.model.window import Window
from kikitori.runtime.errors import ModelError

# Half of the decoder's context, as in Whisper's own decoding: the other half may hold a prompt.
MAX_NEW_TOKENS = 225
# Log-Mel frames that a CPU encodes at a time without gradients. Larger batches only add memory traffic: on two cores
# whisper-base takes 2.0 s for 64 clips of 6 s at once and 1.35 s in parts of ten, 3.7 and 2.9 s for 16 clips of 30 s.
CPU_FRAMES = 6_000
# The key of a model's config.json that describes the clips it was trained on.
TRAINED_ON_KEY = "kikitori_trained_on"
# The key with what the guard found of its timestamps.
TIMESTAMPS_KEY = "kikitori_timestamps"
# The key of a model's config.json that lists the languages it was trained on, if they are several.
LANGUAGES_KEY = "kikitori_languages"
# Attributes of a generation config that `Whisper.configure_generation` sets.
GENERATION_KEYS = ("max_new_tokens", "num_beams")


@dataclass(eq=False)
class Whisper:
    """A model and its processor.

    arguments: the plain arguments of `load_whisper` or `build_whisper` that created it, with `builder` ("load" or
    "build"). notes: on the choice of language and task, for results. The window and the generation settings are
    changed in place, like the weights by training.
    max_tokens_per_s: see `configure_generation`. It belongs to a use of the model and is not saved with it.
    adapter: the one that is in its layers, see `add_adapter`; its settings are part of the arguments.
    """

    model: WhisperForConditionalGeneration
    processor: Processor
    arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    max_tokens_per_s: float | Literal["auto"] = "auto"
    adapter: Lora | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """Plain values for `rebuild_whisper`, stored in checkpoints: all but the weights."""
        return {**self.arguments, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        """The part of the recipe that changes after the model was created."""
        generation = {key: getattr(self.model.generation_config, key, None) for key in GENERATION_KEYS}
        window = self.processor.window.as_plain()
        languages = {"languages": self.languages} if self.languages else {}
        return {"generation": generation, "window": window, "trained_on": self.trained_on, **languages}

    @property
    def num_parameters(self) -> int:
        """All weights, however they are stored."""
        stored = sum(layer.in_features * layer.out_features for layer in quantised_layers(self.model).values())
        return self.model.num_parameters() + stored

    def set_window(self, window: Window) -> None:
        """Changes how far clips are padded; it is saved with the model."""
        self.processor = replace(self.processor, window=window)
        setattr(self.model.config, WINDOW_KEY, window.as_plain())

    @property
    def trained_on(self) -> dict[str, float] | None:
        """Facts on the examples of its last training, saved in config.json: the seconds of the longest (longest_s) and
        of the 95th percentile (p95_s), and their text per second (density, see `speech_rate`); of joined windows also
        the share without speech (non_speech) and with timestamps (timestamps). None for a stock model.
        """
        return getattr(self.model.config, TRAINED_ON_KEY, None)

    def set_trained_on(self, facts: dict[str, float]) -> None:
        """Changes `trained_on`, and whether a transcript may be empty; what was known of its timestamps holds no more.

        Raises ModelError for facts that cannot be.
        """
        setattr(self.model.config, TRAINED_ON_KEY, trained_on(facts, "trained_on has "))
        allow_empty_text(self.model, bool(facts.get("non_speech")))
        self.set_timestamps(None)

    @property
    def timestamps(self) -> dict[str, float] | None:
        """What the guard found of the model's timestamps, saved in config.json; None for a model that it did not read.

        texts: how many were read with timestamps. stamped: percent of them that have some, in ascending order.
        near_joints: percent of the joints of their clips that have one within half a second. cer: in percent, of long
        recordings read by timestamps.
        most_near_joints_change: the upper 95 % bound of its difference to the base's. least_cer_change: the lower one
        of the difference between the CER of long recordings read by timestamps and by pauses, in points.
        """
        return getattr(self.model.config, TIMESTAMPS_KEY, None)

    def set_timestamps(self, facts: dict[str, float] | None) -> None:
        """Changes `timestamps`. Raises ModelError for facts that cannot be."""
        config = self.model.config
        if facts is not None:
            setattr(config, TIMESTAMPS_KEY, timestamp_facts(facts, "timestamps has "))
        elif hasattr(config, TIMESTAMPS_KEY):
            delattr(config, TIMESTAMPS_KEY)

    @property
    def languages(self) -> list[str]:
        """Whisper's codes of the languages of its last training, saved in config.json, that of the processor first.

        Empty for a stock model, and for one that was trained on one language.
        """
        return list(getattr(self.model.config, LANGUAGES_KEY, None) or ())

    def set_languages(self, languages: Sequence[str]) -> None:
        """Changes `languages`. Of several, other tools detect the one of each recording, as with a stock model."""
        config, own = self.model.config, self.processor.language
        if len(languages) > 1:
            setattr(config, LANGUAGES_KEY, sorted(languages, key=lambda code: code != own))
        elif hasattr(config, LANGUAGES_KEY):
            delattr(config, LANGUAGES_KEY)
        self.model.generation_config.language = own if len(languages) < 2 else None

    def configure_generation(
        self,
        max_new_tokens: int | None,
        num_beams: int | None,
        max_tokens_per_s: float | Literal["auto"] | None = None,
    ) -> None:
        """Changes how text is generated. None keeps a setting. The first two are saved with the model.

        num_beams: 1 for greedy decoding. max_tokens_per_s: of a clip and one second more; a row that exceeds it is cut
        off in greedy decoding. auto: as much text as people can say in that time. inf: no limit.
        Raises ModelError for numbers that are out of range.
        """
        checked({"max_new_tokens": max_new_tokens, "num_beams": num_beams}, GENERATION, "generation.")
        config = self.model.generation_config
        room = self.processor.max_label_tokens - len(self.processor.prefix)
        config.max_new_tokens = min(max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS, room)
        config.num_beams = num_beams or config.num_beams or 1
        self.max_tokens_per_s = max_tokens_per_s or self.max_tokens_per_s

    def token_s(self, token: int) -> float:
        """Returns the seconds of a clip that a token takes up, by `max_tokens_per_s`.

        A model that misses the end of a clip repeats itself up to the maximum, which takes as long as all other clips
        of a batch.
        """
        if self.max_tokens_per_s == "auto":
            return self.processor.token_s.get(token, 0.0)
        return 1 / self.max_tokens_per_s

    def add_adapter(self, adapter: Lora, modules: Sequence[str] | None = None) -> None:
        """Puts an adapter into the layers, in place, and freezes all other weights, stored in `adapter.base_bits`.

        modules: names of the layers; None for all that the adapter's targets name and that were trained so far, so with
        a frozen encoder those of the decoder. Needs the package peft, and for base_bits bitsandbytes. Raises ModelError
        if that is impossible.
        """
        if self.adapter:
            raise ModelError("the model has an adapter already; merge it first: whisper.merge_adapter()")
        modules = list(modules or matching(self.model, adapter.targets))
        inject(self.model, adapter, modules)
        self.adapter = adapter
        self.arguments = {**self.arguments, "adapter": {**adapter.as_plain(), "modules": modules}}

    def merge_adapter(self) -> None:
        """Merges the adapter, if there is one, into the weights, which stay frozen. The layers are plain again."""
        if self.adapter:
            merge(self.model, self.adapter.scale)
            self.adapter = None
            self.arguments = {key: value for key, value in self.arguments.items() if key != "adapter"}

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter alone, as peft's own folder, see `kikitori.adapters.folder`."""
        if self.adapter is None:
            raise ModelError("the model has no adapter to save; save the model: whisper.save(folder)")
        facts = {key: self.arguments[key] for key in ("language", "task")} | self._settings()
        name, revision = self.arguments.get("name"), self.arguments.get("revision")
        save_adapter(self.model, self.adapter, name and resolved(name), revision, facts, folder)

    def save(self, folder: Path | str) -> None:
        """Writes a folder that transformers and other tools can load, see `kikitori.model.saving`.

        Raises ModelError while an adapter is in the layers, which these tools do not know.
        """
        if self.adapter:
            raise ModelError("the model has an adapter; merge it first: whisper.merge_adapter()")
        save_model(self.model, self.processor, Path(folder))


def allow_empty_text(model: WhisperForConditionalGeneration, allowed: bool) -> None:
    """Sets whether a transcript may end where it begins, also for other tools, which read generation_config.json.

    A stock Whisper may not, and writes something in silence; one trained on silence with empty texts should.
    """
    config = model.generation_config
    kept = [token for token in config.begin_suppress_tokens or () if token != config.eos_token_id]
    config.begin_suppress_tokens = kept if allowed else [*kept, config.eos_token_id]


def check_whisper(given: Any, caller: str) -> None:
    """Raises TypeError with the remedy unless `given` is a Whisper. caller: what takes it, such as `transcribe`."""
    if isinstance(given, Whisper):
        return
    name, remedy = type(given).__name__, "pass what kikitori.load_whisper or kikitori.build_whisper returns"
    if isinstance(given, str | Path):
        name, remedy = f"the {name} {str(given)!r}", f"pass kikitori.load_whisper({str(given)!r})"
    elif isinstance(getattr(given, "whisper", None), Whisper):
        remedy = "pass module.whisper"
    raise TypeError(f"{caller} takes a Whisper, got {name}; {remedy}")


def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """Computes the encoder's output (batch, positions, d_model) for (batch, mels, frames), frames even.

    In the full window it equals the stock encoder's, which supports no other length. A shorter window uses the first
    positional embeddings.
    """
    if torch.is_grad_enabled() or input_features.device.type != "cpu":
        return _encode(model, input_features)
    batch_size = max(1, CPU_FRAMES // input_features.shape[2])
    return torch.cat([_encode(model, part) for part in input_features.split(batch_size)])


def _encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    encoder = model.model.encoder
    # SpecAugment works in place, so it gets a copy: after running out of memory, a step uses the same features again.
    features = model.model._mask_input_features(
        input_features.clone() if model.config.apply_spec_augment else input_features
    )
    states = gelu(encoder.conv2(gelu(encoder.conv1(features)))).permute(0, 2, 1)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    states = dropout(states, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        if not (encoder.training and encoder.layerdrop and torch.rand(()) < encoder.layerdrop):
            states = layer(states, None)
    return encoder.layer_norm(states)
