"""Builds Whisper models: pretrained, from random weights, or from a checkpoint's recipe."""

import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.model import features
from kikitori.model import processor as processors
from kikitori.model import window as windows
from kikitori.model.processor import FRAMES_PER_POSITION, START, TASKS, Processor, byte_tokenizer
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import KikitoriError, ModelError


def load_whisper(
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
        processor = processors.make_processor(tokenizer, known, language, task, name)
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
    return _ready(model, processor, recipe, freeze, gradient_checkpointing)


def build_whisper(
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
        max_source_positions=window_s * features.FRAMES_PER_SECOND // FRAMES_PER_POSITION,
        max_target_positions=max_label_tokens,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(START),
        begin_suppress_tokens=None,
        **config,
    )
    model = WhisperForConditionalGeneration(whisper_config)
    processor = processors.make_processor(tokenizer, whisper_config, language, task, "micro")
    return _ready(model, processor, recipe, freeze, gradient_checkpointing)


def rebuild_whisper(recipe: dict[str, Any]) -> Whisper:
    """The model that a checkpoint's recipe describes, before the checkpoint's weights are put in.

    Raises ModelError where the recipe is none that `load` or `build` wrote: what else these take, transformers would.
    """
    arguments = {key: value for key, value in recipe.items() if key not in ("builder", "window", "generation")}
    builder = load_whisper if recipe.get("builder") == "load" else build_whisper
    if unknown := sorted(set(map(str, arguments)) - (set(inspect.signature(builder).parameters) - {"config"})):
        raise ModelError(f"the checkpoint's recipe has {', '.join(unknown)}, which kikitori writes in none; train anew")
    whisper = builder(**arguments)
    if "generation" in recipe:  # not in a checkpoint of an early version
        whisper.configure_generation(**recipe["generation"])
    return whisper.with_window(windows.window_from_plain(recipe.get("window")))


def _ready(
    model: WhisperForConditionalGeneration,
    processor: Processor,
    recipe: dict[str, Any],
    freeze: str,
    gradient_checkpointing: bool,
) -> Whisper:
    known = model.generation_config
    model.generation_config = _generation_config(known, processor)
    # Checkpoints and stock tools expect one and only one source of generation settings.
    model.config.suppress_tokens = model.config.begin_suppress_tokens = None
    if freeze == "encoder":
        model.model.encoder.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    whisper = Whisper(model, processor, recipe)
    whisper.configure_generation(known.max_new_tokens, known.num_beams, getattr(known, "max_tokens_per_s", None))
    return whisper


def _generation_config(known: GenerationConfig, processor: Processor) -> GenerationConfig:
    """A fresh generation config: fields set on one derived from the model's configuration vanish on reload."""
    ids = processor.tokenizer.get_vocab()
    end = processor.tokenizer.eos_token_id
    heads = getattr(known, "alignment_heads", None)
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids[START],
        do_sample=False,
        suppress_tokens=getattr(known, "suppress_tokens", None),
        begin_suppress_tokens=[ids["Ġ"], end],
        language=processor.language,
        task=processor.task,
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
