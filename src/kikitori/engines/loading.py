"""Chooses what runs a model: torch, or CTranslate2 for a folder in its format."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kikitori.engines.ctranslate2 import CTranslate2Engine, is_export
from kikitori.inference.generate import Engine, TorchEngine
from kikitori.model.loading import load_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError
from kikitori.runtime.files import expanded

AUTO = "auto"


def load_engine(name: str, language: str | None, task: str | None, base: str | None = None) -> Engine:
    """Loads a model to transcribe with, on the GPU if there is one.

    name: as of `load_whisper`, or a folder in CTranslate2's format. language: may be AUTO, of each recording; the
    model's own is then that of recordings without any sound. Raises ModelError if it cannot be loaded.
    """
    with _no_notes_on_languages(language == AUTO):
        language = None if language == AUTO else language
        if is_export(expanded(name)):
            if base is not None:
                raise ModelError(f"model.base={base} is for an adapter, and model.name={name} is none; leave it out")
            return CTranslate2Engine(expanded(name), language, task)
        return TorchEngine(load_to_read(name, language, task, base))


def load_to_read(name: str, language: str | None = None, task: str | None = None, base: str | None = None) -> Whisper:
    """Loads a Whisper to transcribe with, on the GPU if there is one. Arguments and errors: as of `load_whisper`."""
    if name.endswith(".ckpt"):
        raise ModelError(
            f"model.name={name} is a checkpoint; give the folder of its run. It holds the model of the best checkpoint "
            "once the run has completed; kikitori evaluate checkpoint=FILE scores any checkpoint"
        )
    whisper = load_whisper(name, language, task, base=base)
    whisper.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return whisper


@contextmanager
def _no_notes_on_languages(wanted: bool) -> Iterator[None]:
    """Silences the warning that the model has no language of its own, where each recording has one."""
    log = logging.getLogger("kikitori.model.loading")
    before, log.disabled = log.disabled, wanted or log.disabled
    try:
        yield
    finally:
        log.disabled = before
