"""The usual alternative: the Hugging Face tutorial "Fine-Tune Whisper" with the stock Seq2SeqTrainer, in two versions.

`recipe` is the tutorial as its users write it: https://huggingface.co/blog/fine-tune-whisper, and the articles that
copied it. `fair` is the same trainer as an expert would set it up: arrays instead of lists from the dataset, workers,
no recomputation, labels with one start token.
"""

import csv
import time
from functools import cache
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
import torch
from datasets import Dataset
from measure import DEVICE, Meter, Part, activation_mb
from numpy.typing import NDArray
from task import WARMUP_STEPS, Task
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.transforms import Resample
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from kikitori.metrics.error_rates import corpus_rate, edits_and_lengths, score_clips

LANGUAGE = "ja"


def prepare(task: Task) -> dict[str, Any]:
    """Maps the tutorial's `prepare_dataset` over both splits, in one process."""
    processor = load_processor(task)
    tables = {split: rows(task, split) for split in ("train", "dev")}
    log_mel_and_labels(dict(tables["train"][0]), processor)  # one-time initialisation is not a cost per clip
    start = time.perf_counter()
    for split, table in tables.items():
        dataset = Dataset.from_list(table)
        dataset.map(
            log_mel_and_labels,
            fn_kwargs={"processor": processor},
            remove_columns=dataset.column_names,
            cache_file_name=str(stored(task, split)),
        )
    seconds = time.perf_counter() - start
    clips = sum(map(len, tables.values()))
    size = sum(stored(task, split).stat().st_size for split in tables)
    return {"prepare": {"clips": clips, "seconds": seconds, "clips_per_s": clips / seconds, "bytes": size / clips}}


def rows(task: Task, split: str) -> list[dict[str, str]]:
    """Returns path and sentence of the clips of a table."""
    release = Path(task.release)
    with (release / f"{split}.tsv").open(encoding="utf-8", newline="") as table:
        reader = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
        found = [{"path": str(release / "clips" / row["path"]), "sentence": row["sentence"]} for row in reader]
    return found[: task.train_clips if split == "train" else task.eval_clips]


def stored(task: Task, split: str) -> Path:
    return task.path / f"{split}.arrow"


def load_processor(task: Task) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(task.model, language=LANGUAGE, task="transcribe")


def log_mel_and_labels(row: dict[str, Any], processor: WhisperProcessor) -> dict[str, Any]:
    """The tutorial's `prepare_dataset`, with another decoder.

    The tutorial lets `datasets` decode by casting the column to Audio(sampling_rate=16000). That now needs torchcodec
    and ffmpeg, so the file is decoded and resampled here, with a cached resampling kernel.
    """
    samples, rate = soundfile.read(row["path"], dtype="float32", always_2d=True)
    waveform = resampler(rate)(torch.from_numpy(samples.mean(axis=1))).numpy()
    features = processor.feature_extractor(waveform, sampling_rate=16_000).input_features[0]
    return {"input_features": features, "labels": processor.tokenizer(row["sentence"]).input_ids}


@cache
def resampler(rate: int) -> Resample:
    return Resample(rate, 16_000)


class TutorialCollator:
    """The tutorial's DataCollatorSpeechSeq2SeqWithPadding, as others copied it.

    Its check compares with the tokenizer's bos_token_id, which is <|endoftext|>, so it never removes anything and
    training sees two start tokens. (The tutorial was corrected later; its copies were not.)
    """

    def __init__(self, processor: WhisperProcessor) -> None:
        self.processor = processor

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        input_features = [{"input_features": feature["input_features"]} for feature in features]
        batch = self.processor.feature_extractor.pad(input_features, return_tensors="pt")
        label_features = [{"input_ids": feature["labels"]} for feature in features]
        labels_batch = self.processor.tokenizer.pad(label_features, return_tensors="pt")
        labels = labels_batch["input_ids"].masked_fill(labels_batch.attention_mask.ne(1), -100)
        if (labels[:, 0] == self.processor.tokenizer.bos_token_id).all().cpu().item():
            labels = labels[:, 1:]
        batch["labels"] = labels
        return batch


def fair_collator(features: list[dict[str, NDArray]]) -> dict[str, Tensor]:
    """Stacks the features, and removes the start token from the labels, because the model inserts it itself."""
    labels = [torch.from_numpy(feature["labels"][1:]) for feature in features]
    return {
        "input_features": torch.from_numpy(np.stack([feature["input_features"] for feature in features])),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def train(task: Task) -> dict[str, Any]:
    """Trains, then evaluates, with Seq2SeqTrainer."""
    fair = task.contender == "fair"
    processor = load_processor(task)
    datasets = {split: Dataset.from_file(str(stored(task, split))) for split in ("train", "dev")}
    if fair:
        datasets = {split: dataset.with_format("numpy") for split, dataset in datasets.items()}
    model = WhisperForConditionalGeneration.from_pretrained(task.model)
    model.generation_config.language = LANGUAGE
    model.generation_config.task = "transcribe"
    model.generation_config.forced_decoder_ids = None
    meter = Meter(WARMUP_STEPS, task.all_steps)
    texts: dict[str, list[str]] = {}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        label_ids = prediction.label_ids
        label_ids[label_ids == -100] = processor.tokenizer.pad_token_id
        texts["hypotheses"] = processor.tokenizer.batch_decode(prediction.predictions, skip_special_tokens=True)
        texts["references"] = processor.tokenizer.batch_decode(label_ids, skip_special_tokens=True)
        return {"wer": 100 * jiwer.wer(texts["references"], texts["hypotheses"])}

    trainer = Seq2SeqTrainer(
        args=arguments(task, fair),
        model=model,
        train_dataset=datasets["train"],
        eval_dataset=datasets["dev"],
        data_collator=fair_collator if fair else TutorialCollator(processor),
        compute_metrics=compute_metrics,
        processing_class=processor.feature_extractor,
        callbacks=[EndOfStep(model, meter)],
    )
    trainer.train()
    measured = meter.measured(model.config, task.precision)
    kept = activation_mb(lambda *shape: loss(model, *shape), model, meter.parts, task.precision)
    start = time.perf_counter()
    trainer.evaluate()
    seconds = time.perf_counter() - start
    cer = corpus_rate(edits_and_lengths(score_clips(texts["references"], texts["hypotheses"], LANGUAGE), "cer"))
    clips = len(datasets["dev"])
    evaluated = {
        "clips": clips,
        "seconds": seconds,
        "clips_per_s": clips / seconds,
        "cer": cer,
        "texts": texts["hypotheses"],
    }
    return {"train": {**measured, "activation_mb_per_clip": kept}, "evaluate": evaluated}


def arguments(task: Task, fair: bool) -> Seq2SeqTrainingArguments:
    """Returns the tutorial's arguments, without saving and intermediate validation."""
    return Seq2SeqTrainingArguments(
        output_dir=str(task.path / "trainer"),
        per_device_train_batch_size=task.batch,
        per_device_eval_batch_size=task.batch,
        learning_rate=1e-5,
        max_steps=task.all_steps,
        gradient_checkpointing=not fair,
        dataloader_num_workers=2 if fair else 0,
        fp16=task.precision == "16-mixed",
        bf16=task.precision == "bf16-mixed",
        use_cpu=DEVICE.type == "cpu",
        predict_with_generate=True,
        # The four prefix tokens count here: start, language, task, no timestamps.
        generation_max_length=task.max_new_tokens + 4,
        logging_steps=25,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=task.seed,
        remove_unused_columns=False,
        label_names=["labels"],
    )


class EndOfStep(TrainerCallback):
    """Passes the parts of each step to the meter."""

    def __init__(self, model: WhisperForConditionalGeneration, meter: Meter) -> None:
        self.meter = meter
        self.parts: list[Part] = []
        model.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, model: WhisperForConditionalGeneration, _: Any, inputs: dict[str, Any]) -> None:
        if model.training:
            clips, _, frames = inputs["input_features"].shape
            self.parts.append(Part(clips, frames, inputs["labels"].shape[1]))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.end_of_step(self.parts)
        self.parts = []


def loss(model: WhisperForConditionalGeneration, clips: int, frames: int, tokens: int) -> Tensor:
    """Returns the loss of synthetic clips."""
    features = torch.zeros(clips, model.config.num_mel_bins, frames, device=DEVICE)
    labels = torch.ones(clips, tokens, dtype=torch.int64, device=DEVICE)
    return model(input_features=features, labels=labels, use_cache=False).loss
