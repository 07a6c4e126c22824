"""Creates Whisper models: pretrained, with random weights, or from a checkpoint's recipe."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    modeling_utils,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.adapters.folder import FACTS, is_adapter, read_adapter
from kikitori.adapters.settings import adapter_from_plain
from kikitori.metrics.languages import language_code
from kikitori.model.features import FRAMES_PER_SECOND
from kikitori.model.limits import (
    CONFIG,
    checked,
    generation_config,
    parameters,
    timestamp_facts,
    trained_on,
    whisper_config,
)
from kikitori.model.limits import languages as checked_languages
from kikitori.model.processor import (
    FRAMES_PER_POSITION,
    START,
    TASKS,
    WINDOW_KEY,
    Processor,
    add_timestamps,
    byte_tokenizer,
    make_processor,
    whisper_code,
)
from kikitori.model.source import base_of, check_files, check_tokenizer, check_type, locate, pinned
from kikitori.model.whisper import (
    GENERATION_KEYS,
    LANGUAGES_KEY,
    TIMESTAMPS_KEY,
    TRAINED_ON_KEY,
    Whisper,
    allow_empty_text,
)
from kikitori.model.window import window_from_plain
from kikitori.references.pinning import local_path, pin
from kikitori.runtime.distributed import rank
from kikitori.runtime.errors import ConfigError, KikitoriError, ModelError, check_above_zero, one_line

log = logging.getLogger(__name__)


def load_whisper(
    name: str,
    language: str | None = None,
    task: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    freeze: Literal["encoder", "none"] = "none",
    gradient_checkpointing: bool = False,
    default_language: str = "ja",
    **config: Any,
) -> Whisper:
    """Loads a pretrained Whisper from the Hugging Face Hub or a folder, in fp32. Code in its repository is never run.

    name: on the Hub, or the folder of a model, of a run or of an adapter, which is merged into its base, or a
    reference: hub:owner/name@revision, wandb:entity/project/artifact:alias. language: a code or name, such as ja or
    Japanese; task: transcribe or translate; None for those that a fine-tuned model was saved with, or else
    `default_language` and transcribe. revision: a commit, tag or branch on the Hub, None for the main branch. base: of
    an adapter, a name as above; None for the one that the adapter names, which is not downloaded. freeze: the part that
    is not trained. config: fields of `WhisperConfig` to change, such as dropout and SpecAugment.
    Raises ModelError if the model cannot be loaded or does not support the language.
    """
    _check_fields(load_whisper, config)
    checked(config, CONFIG, "model.")
    rest: dict[str, Any] = {"freeze": freeze, "gradient_checkpointing": gradient_checkpointing, **config}
    (name, revision), base = pinned(name, revision), base and pin(base)
    if is_adapter(local_path(name)):
        return _load_adapted(name, (language, task), revision, base, default_language, rest)
    if base is not None:
        raise ModelError(f"model.base={base} is for an adapter, and model.name={name} is none; leave it out")
    return _load(name, (language, task), revision, default_language, **rest)


def _load_adapted(
    name: str,
    given: tuple[str | None, str | None],
    revision: str | None,
    base: str | None,
    default_language: str,
    rest: dict[str, Any],
) -> Whisper:
    """Loads the base of an adapter and merges the adapter into it. given: language and task."""
    adapter = read_adapter(local_path(name))
    base_name, facts = base_of(adapter, base), adapter.facts
    own = (facts.get("language"), facts.get("task"))
    where = f"the adapter {adapter.folder}: {FACTS}: "
    languages = checked_languages(facts.get("languages", []), where)
    chosen = choose_language_and_task(name, given, own, default_language, languages) if own != (None, None) else None
    language_and_task = (chosen.language, chosen.task) if chosen else given
    base_revision = revision or (None if base or local_path(base_name).is_dir() else adapter.revision)
    place = pinned(base_name, base_revision)
    whisper = _load(place[0], language_and_task, place[1], default_language, offline=base is None, **rest)
    adapter.merge_into(whisper.model, base_name)
    whisper.arguments |= {"name": name, "revision": revision, "base": base}
    whisper.notes += chosen.notes if chosen else []
    try:
        _configure(whisper, facts)
        whisper.set_timestamps(facts.get("timestamps"))  # not those of the base
    except ModelError as error:
        raise ModelError(f"{where}{error}") from error
    return whisper


def _load(
    name: str,
    given: tuple[str | None, str | None],
    revision: str | None,
    default_language: str,
    freeze: str,
    gradient_checkpointing: bool,
    offline: bool = False,
    **config: Any,
) -> Whisper:
    place, safely = locate(name, revision, offline)
    try:
        if Path(place).is_dir():
            check_files(name, Path(place))
        # The small files first, so that a fault in them is reported before gigabytes are downloaded.
        values = WhisperConfig.get_config_dict(place, **safely)[0]
        check_type(name, values)
        tokenizer = WhisperTokenizer.from_pretrained(place, **safely)
        saved_config = _config(name, values | config)
        saved = _saved_generation(name, place, safely, saved_config)
        check_tokenizer(name, tokenizer, saved_config, saved)
        _add_timestamps(tokenizer, saved_config)
        own = (getattr(saved, "language", None), getattr(saved, "task", None))
        languages = getattr(saved_config, LANGUAGES_KEY, ())
        chosen = choose_language_and_task(name, given, own, default_language, languages)
        processor = make_processor(tokenizer, saved_config, chosen.language, chosen.task, name)
        _check_size(name, Path(place), saved_config)
        # fp32, because large-v3's file is fp16 and optimisation needs fp32 master weights. The attention is set
        # explicitly, because config.json may name one whose code would be downloaded.
        form = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "sdpa"}
        with _adapters_ignored():
            model, found = WhisperForConditionalGeneration.from_pretrained(
                place, **safely, **form, output_loading_info=True, config=saved_config, generation_config=saved
            )
    except KikitoriError:
        raise
    except BaseException as error:  # damaged or hostile files make transformers raise errors of many classes
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of its Rust libraries
            raise
        where = "" if Path(place).is_dir() else "there is no such folder, and on the Hub: "
        raise _cannot_load(name, where + one_line(error)) from error
    if missing := sorted(set(found["missing_keys"]) - {"proj_out.weight"}):
        raise ModelError(f"model.name={name} lacks {len(missing)} of Whisper's weights, such as {missing[0]}")
    arguments = {"builder": "load", "name": name, "revision": revision}
    return _finish(model, processor, arguments, freeze, gradient_checkpointing, chosen.notes)


def build_whisper(
    d_model: int = 128,
    encoder_layers: int = 2,
    decoder_layers: int = 2,
    attention_heads: int = 2,
    window_s: int = 3,
    language: str | None = None,
    task: str | None = None,
    num_mel_bins: int = 80,
    max_label_tokens: int = 128,
    freeze: Literal["encoder", "none"] = "none",
    gradient_checkpointing: bool = False,
    init_std: float = 0.08,
    timestamps: bool | None = None,
    **config: Any,
) -> Whisper:
    """Builds a Whisper with random weights, its own window of whole seconds, and a byte-level tokenizer.

    It has the special tokens of the pretrained models, so that all other code treats it the same. The defaults are
    those of `model=micro`: 1.1 M parameters, for clips of at most 3 s. timestamps: whether it has the tokens <|0.00|>,
    <|0.02|> and so on to the end of its window, too; they change its random weights. Other arguments: see
    `load_whisper`.
    """
    language, task = language or "ja", task or "transcribe"
    _check_fields(build_whisper, config)
    sizes = {"d_model": d_model, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    sizes |= {"attention_heads": attention_heads, "num_mel_bins": num_mel_bins, "max_label_tokens": max_label_tokens}
    check_above_zero("model", {**sizes, "window_s": window_s}, whole=True)
    if d_model % 2 or d_model % attention_heads:
        raise ConfigError(
            f"model.d_model={d_model}: must be even, and a multiple of model.attention_heads={attention_heads}"
        )
    arguments = {"builder": "build", **sizes, "window_s": window_s, **({"timestamps": True} if timestamps else {})}
    tokenizer = byte_tokenizer(window_s if timestamps else 0)
    values = {
        "vocab_size": len(tokenizer),
        "num_mel_bins": num_mel_bins,
        "d_model": d_model,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": attention_heads,
        "decoder_attention_heads": attention_heads,
        "encoder_ffn_dim": 4 * d_model,
        "decoder_ffn_dim": 4 * d_model,
        "max_source_positions": window_s * FRAMES_PER_SECOND // FRAMES_PER_POSITION,
        "max_target_positions": max_label_tokens,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids(START),
        "begin_suppress_tokens": None,
        "init_std": init_std,
    }
    micro = whisper_config(values | config, "model: ")
    model = WhisperForConditionalGeneration(micro)
    processor = make_processor(tokenizer, micro, language, task, "micro")
    return _finish(model, processor, arguments, freeze, gradient_checkpointing)


@contextmanager
def _adapters_ignored() -> Iterator[None]:
    """Keeps transformers from adapters: if peft is installed, it loads the one in an adapter_config.json that lies next
    to a model, and the base that this file names, from wherever it is.
    """
    follow = modeling_utils.maybe_load_adapters
    modeling_utils.maybe_load_adapters = lambda name, download, **rest: (None, name, rest)
    try:
        yield
    finally:
        modeling_utils.maybe_load_adapters = follow


def rebuild_whisper(recipe: dict[str, Any]) -> Whisper:
    """Creates the model that a checkpoint's recipe describes; the caller then loads the checkpoint's weights.

    Raises ModelError if the recipe has keys that kikitori never writes, which would become arguments of transformers.
    """
    others = ("builder", "window", "generation", "trained_on", "languages", "adapter")
    arguments = {key: value for key, value in recipe.items() if key not in others}
    builder = load_whisper if recipe.get("builder") == "load" else build_whisper
    if unknown := sorted(set(map(str, arguments)) - (set(inspect.signature(builder).parameters) - {"config"})):
        raise ModelError(
            f"the checkpoint's recipe has {', '.join(unknown)}, which kikitori never writes; use another checkpoint"
        )
    whisper = builder(**arguments)
    _configure(whisper, recipe)
    if "adapter" in recipe:
        whisper.add_adapter(*adapter_from_plain(recipe["adapter"]))
    return whisper


def _configure(whisper: Whisper, recipe: Mapping[str, Any]) -> None:
    """Sets what is changed after a model was created. recipe: that of a checkpoint or of an adapter's kikitori.json."""
    if "generation" in recipe:  # missing in checkpoints of early versions
        whisper.configure_generation(*(recipe["generation"][key] for key in GENERATION_KEYS))
    whisper.set_window(window_from_plain(recipe.get("window")))
    if recipe.get("trained_on"):
        whisper.set_trained_on(recipe["trained_on"])
    # Also where it has none: the base may be of several.
    whisper.set_languages(checked_languages(recipe.get("languages") or [], "it has "))


class Chosen(NamedTuple):
    """The language and task of a model, and sentences on those that are not what it was trained with."""

    language: str
    task: str
    notes: list[str]


def choose_language_and_task(
    name: str,
    given: tuple[str | None, str | None],
    own: tuple[str | None, str | None],
    default_language: str,
    languages: Sequence[str] = (),
) -> Chosen:
    """Chooses the language and task of a model: those given, or those it was trained with, or the default.

    own: None for a stock model, and ignored if it is no language or task. languages: those of a model that was trained
    with several; the first is its own, unless another of them is given. The notes, and the use of the default, are
    logged in one process of a run.
    """
    language, task = given[0] and whisper_code(given[0]), given[1]
    own_language, own_task = _own_code(own[0]), own[1] if own[1] in TASKS else None
    if languages:
        own_language = language if language in languages else languages[0]
    notes = [
        f"model.{key}={setting} is used, as set; {name} was trained with {trained}"
        for key, setting, trained, own in (
            ("language", language, ", ".join(languages) or own_language, own_language),
            ("task", task, own_task, own_task),
        )
        if setting and own and setting != own
    ]
    assumed = f"{name} was saved without a language; {default_language} is used, since none is set"
    if rank() == 0:
        for line in notes if language or own_language else [*notes, assumed]:
            log.warning(line)
    return Chosen(given[0] or own_language or default_language, task or own_task or "transcribe", notes)


def _own_code(language: Any) -> str | None:
    """The code of the language in a generation_config.json, which may be <|ja|> or Japanese; None if it is none."""
    try:
        return language_code(language.strip("<|>")) if isinstance(language, str) else None
    except ValueError:
        return None


def _check_fields(builder: Callable[..., Whisper], config: Mapping[str, Any]) -> None:
    """Raises ModelError for an argument that is no field of WhisperConfig, which transformers would ignore."""
    known = {*inspect.signature(builder).parameters, *WhisperConfig.__annotations__} - {"config"}
    for key in config:
        if key not in known:
            close = get_close_matches(key, sorted(known), n=1)
            raise ModelError(
                f"{builder.__name__} has no argument {key}, and WhisperConfig no such field"
                + (f"; did you mean {close[0]}?" if close else "; leave it out")
            )


def _config(name: str, values: Mapping[str, Any]) -> WhisperConfig:
    """Makes the config of a config.json."""
    where = f"model.name={name}: config.json has "
    config = whisper_config(values, where)
    if values.get(WINDOW_KEY):
        setattr(config, WINDOW_KEY, window_from_plain(values[WINDOW_KEY]).as_plain())
    if values.get(TRAINED_ON_KEY):
        setattr(config, TRAINED_ON_KEY, trained_on(values[TRAINED_ON_KEY], f"{where}{TRAINED_ON_KEY} with "))
    if values.get(TIMESTAMPS_KEY):
        setattr(config, TIMESTAMPS_KEY, timestamp_facts(values[TIMESTAMPS_KEY], f"{where}{TIMESTAMPS_KEY} with "))
    if values.get(LANGUAGES_KEY):
        setattr(config, LANGUAGES_KEY, checked_languages(values[LANGUAGES_KEY], f"{where}{LANGUAGES_KEY}: "))
    return config


def _add_timestamps(tokenizer: WhisperTokenizer, config: WhisperConfig) -> None:
    """Adds the timestamps of the model's window where the vocabulary ends with them and the tokenizer before them."""
    first, count = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1, config.max_source_positions + 1
    if config.vocab_size == first + count:
        add_timestamps(tokenizer, first, count)


def _check_size(name: str, folder: Path, config: WhisperConfig) -> None:
    """Raises ModelError if the weights in a folder cannot be all of a model, which takes its memory all the same."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    if 0 < weights < parameters(config):
        millions = parameters(config) / 1e6
        raise _cannot_load(
            name, f"config.json is of a model of {millions:.1f} M parameters, its weights are {weights} bytes"
        )


def _saved_generation(name: str, place: str, safely: dict[str, Any], config: WhisperConfig) -> GenerationConfig:
    """What generation_config.json says, or where there is none, config.json."""
    values = {"suppress_tokens": config.suppress_tokens}
    with suppress(OSError):
        arguments = {key: value for key, value in safely.items() if key != "trust_remote_code"}
        values = GenerationConfig.from_pretrained(place, **arguments).to_dict()
    return generation_config(values, config.vocab_size, f"model.name={name}: generation_config.json has ")


def _cannot_load(name: str, reason: str) -> ModelError:
    return ModelError(
        f"model.name={name} cannot be loaded: {reason}\n"
        "  Give a folder written by save_pretrained (such as model/ in the folder of a completed run), or the name of "
        "a Whisper on the Hugging Face Hub that this machine can reach (a private one needs HF_TOKEN in the "
        "environment). Only safetensors are loaded: a pytorch_model.bin may run code. To convert one that you trust, "
        "load it with transformers and call save_pretrained."
    )


def _finish(
    model: WhisperForConditionalGeneration,
    processor: Processor,
    arguments: dict[str, Any],
    freeze: str,
    gradient_checkpointing: bool,
    notes: Sequence[str] = (),
) -> Whisper:
    """Sets generation, freezing and gradient checkpointing of a new model."""
    saved = model.generation_config
    model.generation_config = _generation_config(saved, processor)
    # Trainers and stock tools expect generation settings in one place only.
    model.config.suppress_tokens = model.config.begin_suppress_tokens = None
    if freeze not in ("encoder", "none"):
        raise ModelError(f"model.freeze={freeze}: must be encoder or none")
    if freeze == "encoder":
        model.model.encoder.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    arguments |= {"language": processor.language, "task": processor.task}
    whisper = Whisper(model, processor, arguments, list(notes))
    allow_empty_text(model, bool((whisper.trained_on or {}).get("non_speech")))
    whisper.set_languages(whisper.languages)
    whisper.configure_generation(_max_new_tokens(saved, processor), saved.num_beams)
    return whisper


def _max_new_tokens(saved: GenerationConfig, processor: Processor) -> int | None:
    """The limit that a model was saved with; None for a stock model, whose max_length is that of its decoder."""
    limit: int | None = saved.max_new_tokens or saved.max_length
    return None if limit == processor.max_label_tokens else limit


def _generation_config(saved: GenerationConfig, processor: Processor) -> GenerationConfig:
    """Makes a new generation config: fields set on one that transformers derived from a model config are not saved."""
    ids = processor.tokenizer.get_vocab()
    end = processor.tokenizer.eos_token_id
    heads = getattr(saved, "alignment_heads", None)
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids[START],
        do_sample=False,
        suppress_tokens=getattr(saved, "suppress_tokens", None),
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
