"""A Whisper with its front end: load a pretrained one, build a micro one from random weights, freeze, save."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isinf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori import audio
from kikitori import front_end as front_ends
from kikitori import window as windows
from kikitori.errors import KikitoriError, ModelError
from kikitori.front_end import FRAMES_PER_POSITION, START, TASKS, WINDOW, FrontEnd, byte_tokenizer
from kikitori.window import Window

# Half of the decoder's context, as Whisper's own decoding has it: the other half may hold a prompt.
MAX_NEW_TOKENS = 225
# Log-Mel frames that a CPU encodes at once where it only reads; more have nothing but the memory to fetch. On two cores
# whisper-base takes 2.0 s for 64 clips in 6 s at once and 1.35 s in parts of ten, 3.7 and 2.9 s for 16 clips in 30 s.
CPU_FRAMES = 6_000


@dataclass(frozen=True)
class Whisper:
    """A model with its front end. `recipe` holds the plain arguments that build the same model again."""

    model: WhisperForConditionalGeneration
    front_end: FrontEnd
    recipe: dict[str, Any]

    def limit_generation(
        self, max_new_tokens: int | None, num_beams: int | None, max_tokens_per_s: float | None = None
    ) -> None:
        """How this model writes from now on, here and wherever its folder is loaded: greedily with one beam.

        max_tokens_per_s: see `caps`; only this code knows it, and no beam search does; inf is no such bound. None
        leaves a setting as the model has it.
        """
        config = self.model.generation_config
        room = self.front_end.max_label_tokens - len(self.front_end.prefix)
        config.max_new_tokens = min(max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS, room)
        config.num_beams = num_beams or config.num_beams or 1
        rate = max_tokens_per_s or getattr(config, "max_tokens_per_s", None)
        config.max_tokens_per_s = None if rate is None or isinf(rate) else rate
        limits = {key: getattr(config, key) for key in ("max_new_tokens", "num_beams", "max_tokens_per_s")}
        self.recipe["generation"] = limits

    def caps(self, seconds: Sequence[float]) -> list[int]:
        """The tokens, at most, that are written for clips of so many seconds.

        A clip is granted a second more than it has. What nobody could say in its time is the babble of a model that
        does not know the end, and takes as long to write as all the others of a batch.
        """
        config = self.model.generation_config
        most, rate = config.max_new_tokens, config.max_tokens_per_s
        return [min(most, ceil(rate * (s + 1))) if rate else most for s in seconds]

    def hearing_in(self, window: Window) -> "Whisper":
        """The same model, whose clips are heard in these windows, here and wherever its folder is loaded."""
        setattr(self.model.config, WINDOW, window.as_plain())
        recipe = {**self.recipe, "window": window.as_plain()}
        return Whisper(self.model, replace(self.front_end, window=window), recipe)

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` and transformers' speech recognition pipeline load."""
        front_end = self.front_end
        extractor = WhisperFeatureExtractor(front_end.num_mel_bins, chunk_length=round(front_end.window_s))
        WhisperProcessor(extractor, front_end.tokenizer).save_pretrained(folder)
        self.model.save_pretrained(folder)


def load(
    name: str,
    language: str,
    task: str,
    revision: str | None = None,
    freeze: Literal["encoder", "none"] = "none",
    gradient_checkpointing: bool = False,
    **config: Any,
) -> Whisper:
    """A pretrained Whisper from the Hugging Face Hub or a folder, in fp32. No code of theirs is run.

    revision: a commit, tag or branch of the Hub; None for its main one. config: `WhisperConfig` fields to change, such
    as dropout and SpecAugment.
    Raises ModelError where `name` cannot be loaded, or the model does not know the language.
    """
    recipe = {"builder": "load", "name": name, "language": language, "task": task, "revision": revision}
    if revision and Path(name).is_dir():
        raise ModelError(f"model.revision={revision} is for a name on the Hub, and {name} is a folder; leave it out")
    if any(Path(name).glob("shard-*.safetensors")):
        raise ModelError(f"model.name={name} cannot be loaded: it is in parts, as torch.distributed saves a model")
    safely: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    try:
        # The small files first: a wrong language is told before gigabytes are fetched.
        tokenizer = WhisperTokenizer.from_pretrained(name, **safely)
        known = WhisperConfig.from_pretrained(name, **safely)
        front_end = front_ends.make(tokenizer, known, language, task, name)
        if foreign := [key for key in ("quantization_config", "transformers_weights") if hasattr(known, key)]:
            raise ModelError(
                f"model.name={name}: config.json has {foreign[0]}; give a plain Whisper in model.safetensors"
            )
        # Large-v3's file is fp16; optimisation needs fp32 master weights. The attention is named, for config.json may
        # name one that is code to be fetched.
        form = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "sdpa"}
        model, found = WhisperForConditionalGeneration.from_pretrained(
            name, **safely, **form, output_loading_info=True, **config
        )
    except KikitoriError:
        raise
    except Exception as error:  # whatever damaged files, or a stranger's, make transformers raise
        raise _unloadable(name, error) from error
    if missing := sorted(set(found["missing_keys"]) - {"proj_out.weight"}):
        raise ModelError(f"model.name={name} lacks {len(missing)} of Whisper's weights, such as {missing[0]}")
    if getattr(model.generation_config, "is_multilingual", True) is False:
        raise ModelError(f"model.name={name} knows English only and no language prefix; take its multilingual sister")
    return _ready(model, front_end, recipe, freeze, gradient_checkpointing)


def build(
    d_model: int,
    encoder_layers: int,
    decoder_layers: int,
    attention_heads: int,
    window_s: int,
    language: str,
    task: str,
    num_mel_bins: int = 80,
    max_label_tokens: int = 448,
    freeze: Literal["encoder", "none"] = "none",
    gradient_checkpointing: bool = False,
    **config: Any,
) -> Whisper:
    """A Whisper from random weights, with a window of its own (whole seconds) and a byte-level tokenizer made here.

    It keeps the special-token contract of the pretrained ones, so that everything else treats it the same.
    """
    sizes = {"d_model": d_model, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    sizes |= {"attention_heads": attention_heads, "num_mel_bins": num_mel_bins, "max_label_tokens": max_label_tokens}
    recipe = {"builder": "build", **sizes, "window_s": window_s, "language": language, "task": task}
    tokenizer = byte_tokenizer()
    whisper_config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=num_mel_bins,
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=attention_heads,
        decoder_attention_heads=attention_heads,
        encoder_ffn_dim=4 * d_model,
        decoder_ffn_dim=4 * d_model,
        max_source_positions=window_s * audio.FRAMES_PER_SECOND // FRAMES_PER_POSITION,
        max_target_positions=max_label_tokens,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(START),
        begin_suppress_tokens=None,
        **config,
    )
    model = WhisperForConditionalGeneration(whisper_config)
    front_end = front_ends.make(tokenizer, whisper_config, language, task, "micro")
    return _ready(model, front_end, recipe, freeze, gradient_checkpointing)


def rebuild(recipe: dict[str, Any]) -> Whisper:
    """The model that a checkpoint's recipe describes, before the checkpoint's weights are put in.

    Raises ModelError where the recipe is none that `load` or `build` wrote: what else these take, transformers would.
    """
    arguments = {key: value for key, value in recipe.items() if key not in ("builder", "window", "generation")}
    builder = load if recipe.get("builder") == "load" else build
    if unknown := sorted(set(map(str, arguments)) - (set(inspect.signature(builder).parameters) - {"config"})):
        raise ModelError(f"the checkpoint's recipe has {', '.join(unknown)}, which kikitori writes in none; train anew")
    whisper = builder(**arguments)
    if "generation" in recipe:  # not in a checkpoint of an early version
        whisper.limit_generation(**recipe["generation"])
    return whisper.hearing_in(windows.from_plain(recipe.get("window")))


def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """(batch, positions, d_model): the encoder's states of (batch, mels, frames), of any even number of frames.

    Equal to the stock encoder's in the whole window, the only one that it takes; a shorter one has the first positions.
    """
    if torch.is_grad_enabled() or input_features.device.type != "cpu":
        return _encode(model, input_features)
    at_once = max(1, CPU_FRAMES // input_features.shape[2])
    return torch.cat([_encode(model, some) for some in input_features.split(at_once)])


def _encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    encoder = model.model.encoder
    # SpecAugment, where it is asked for; in place, so of a copy: a step that did not fit the memory is taken again.
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


def _ready(
    model: WhisperForConditionalGeneration,
    front_end: FrontEnd,
    recipe: dict[str, Any],
    freeze: str,
    gradient_checkpointing: bool,
) -> Whisper:
    known = model.generation_config
    model.generation_config = _generation_config(known, front_end)
    # Checkpoints and stock tools expect one and only one source of generation settings.
    model.config.suppress_tokens = model.config.begin_suppress_tokens = None
    if freeze == "encoder":
        model.model.encoder.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    whisper = Whisper(model, front_end, recipe)
    whisper.limit_generation(known.max_new_tokens, known.num_beams, getattr(known, "max_tokens_per_s", None))
    return whisper


def _generation_config(known: GenerationConfig, front_end: FrontEnd) -> GenerationConfig:
    """A fresh generation config: fields set on one derived from the model's configuration vanish on reload."""
    ids = front_end.tokenizer.get_vocab()
    end = front_end.tokenizer.eos_token_id
    heads = getattr(known, "alignment_heads", None)
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids[START],
        do_sample=False,
        suppress_tokens=getattr(known, "suppress_tokens", None),
        begin_suppress_tokens=[ids["Ġ"], end],
        language=front_end.language,
        task=front_end.task,
        is_multilingual=True,
        return_timestamps=False,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids},
        task_to_id={task: ids[f"<|{task}|>"] for task in TASKS},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        **({"alignment_heads": heads} if heads else {}),
    )


def _unloadable(name: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"model.name={name} cannot be loaded: {reason}\n"
        "  Give a folder written by save_pretrained, or the name of a Whisper on the Hugging Face Hub that this "
        "machine can reach (a private one needs HF_TOKEN in the environment). Weights are read as safetensors alone: a "
        "pytorch_model.bin may run code, so whoever trusts it loads it and calls save_pretrained."
    )
