"""CTranslate2: a folder that faster-whisper reads, too."""

from pathlib import Path

from torch import Tensor

from kikitori.adapters.folder import FACTS
from kikitori.exports.formats import Format, Read, processor_in
from kikitori.model.whisper import LANGUAGES_KEY, TIMESTAMPS_KEY, TRAINED_ON_KEY
from kikitori.runtime.files import read_json, write_json
from kikitori.runtime.processes import cores

# Of faster-whisper: without preprocessor_config.json it computes 80 Mels, whatever the model has.
COPIED = ["tokenizer.json", "preprocessor_config.json"]


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes an export, with what `kikitori transcribe` knows of a model and CTranslate2's files have no place for."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(model_folder), copy_files=COPIED)
    converter.convert(str(target), quantization=precision, force=True)
    config, generation = (read_json(model_folder / f"{name}.json") for name in ("config", "generation_config"))
    known = {key: config.get(key) for key in (TRAINED_ON_KEY, TIMESTAMPS_KEY, LANGUAGES_KEY)}
    known |= {key: generation.get(key) for key in ("language", "task")}
    write_json(target / FACTS, {key: value for key, value in known.items() if value})


def load(target: Path, language: str, task: str) -> Read:
    """Opens an export on the CPU, which computes float16 as float32. CTranslate2 alone has no features and no texts."""
    import ctranslate2

    processor = processor_in(target, language, task)
    model = ctranslate2.models.Whisper(str(target), device="cpu", intra_threads=cores())

    def read(samples: Tensor) -> str:
        features = processor.log_mel(samples, full_window=True)[None].numpy()
        # Half of its default max_length is TEXT_TOKENS.
        (found,) = model.generate(ctranslate2.StorageView.from_array(features), [processor.prefix], beam_size=1)
        return processor.decode(found.sequences_ids)[0]

    return read


FORMAT = Format(
    name="ctranslate2",
    extra="ctranslate2",
    modules=("ctranslate2",),
    precisions=("float16", "float32", "int8", "int8_float16"),
    write=write,
    load=load,
)
