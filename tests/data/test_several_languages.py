"""Clips of several languages in one training: each has its own prefix in labels and generation, and its own rules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data_modules import LOADING, trainer_of
from recordings import write_clip, write_csv

from kikitori.corpora.splits import hold_out
from kikitori.corpora.types import Clip, Corpus, Split
from kikitori.data.collate import IGNORE_INDEX, check_label_contract, collate
from kikitori.data.datamodule import Manifest
from kikitori.data.filters import check_languages, subset
from kikitori.inference.generate import generate
from kikitori.inference.greedy import greedy
from kikitori.joining.settings import Joining
from kikitori.model.loading import build_whisper, load_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.optim.optimizers import adamw
from kikitori.runtime.errors import DataError, ModelError
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.loss import clip_losses

TEXTS = {
    "ja": ["犬", "赤い犬", "猫", "白い猫"],
    "ko": ["개", "빨간 개", "고양이", "흰 고양이"],
    "en": ["dog", "red dog"],
}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each text in each split, by language in turn; one speaker of all languages in each split."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for split in SPLITS:
        for number, (language, text) in enumerate((code, text) for code, texts in TEXTS.items() for text in texts):
            path = f"{split}{number}.wav"
            write_clip(folder / path, 200 + 10 * (number + 100 * SPLITS.index(split)), 0.4 + 0.05 * number)
            cells = {"path": path, "text": text, "split": split, "speaker": f"{split} one", "language": language}
            rows.append(cells)
    return write_csv(folder / "list.csv", rows)


def module(table: Path, whisper: Whisper | None, **changes: Any) -> Manifest:
    settings = {"language_column": "language", "speaker_column": "speaker", "trainer": trainer_of(), **changes}
    return Manifest(str(table), processor=whisper.processor if whisper else None, **{**LOADING, **settings})


def first_batch(table: Path, whisper: Whisper) -> Any:
    return module(table, whisper, global_batch_size=10).first_batch("train")


def test_each_row_of_a_batch_has_the_prefix_of_its_language(micro: Whisper, table: Path) -> None:
    batch = first_batch(table, micro)
    assert sorted(batch["languages"]) == ["en"] * 2 + ["ja"] * 4 + ["ko"] * 4
    ids = micro.processor.tokenizer.convert_tokens_to_ids
    for row, language, text in zip(batch["labels"].tolist(), batch["languages"], batch["texts"], strict=True):
        golden = ids([f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"])
        supervised = [token for token in row if token != IGNORE_INDEX]
        assert supervised == [*golden, *micro.processor.encode_texts([text])[0], ids("<|endoftext|>")]
        assert text in TEXTS[language]
    check_label_contract(batch, micro.processor)
    wrong = {**batch, "languages": batch["languages"][::-1]}
    with pytest.raises(DataError, match="the labels begin with"):
        check_label_contract(wrong, micro.processor)  # type: ignore[arg-type]


def test_losses_and_gradients_are_those_of_each_language_alone_by_the_stock_model(micro: Whisper, table: Path) -> None:
    batch, model, tokenizer = first_batch(table, micro), micro.model.eval(), micro.processor.tokenizer
    states = encode(model, batch["input_features"][0])
    losses = clip_losses(model, states, batch["labels"], sum(batch["num_tokens"]))
    losses.sum().backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    for language in TEXTS:
        rows = [i for i, code in enumerate(batch["languages"]) if code == language]
        tokenizer.set_prefix_tokens(language=language, task="transcribe")
        for i in rows:
            labels = torch.tensor(tokenizer(batch["texts"][i])["input_ids"])[None, 1:]
            stock = model(input_features=batch["input_features"][0][i : i + 1], labels=labels).loss * labels.shape[1]
            torch.testing.assert_close(losses[i], stock)
            stock.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(ours[name], weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_mixed_batch_generates_what_each_language_does_alone(beams: int, table: Path) -> None:
    torch.manual_seed(0)
    # Large random weights, of which text depends on the language.
    whisper = build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=64, init_std=0.4)
    whisper.configure_generation(max_new_tokens=8, num_beams=beams)
    whisper.model.generation_config.suppress_tokens = sorted(whisper.processor.control_ids)
    batch = first_batch(table, whisper)
    whisper.model.eval()
    with torch.inference_mode():
        states = encode(whisper.model, batch["input_features"][0])
        mixed = [row.text for row in generate(whisper, states, batch["seconds"], languages=batch["languages"])]
        for language in TEXTS:
            rows = [i for i, code in enumerate(batch["languages"]) if code == language]
            alone = replace(whisper, processor=whisper.processor.of(language))
            expected = generate(alone, states[rows], [batch["seconds"][i] for i in rows])
            assert [mixed[i] for i in rows] == [row.text for row in expected]
        assert mixed != [row.text for row in generate(whisper, states, batch["seconds"])]


def test_one_prefix_for_all_rows_and_one_for_each_are_the_same(micro: Whisper) -> None:
    states = torch.randn(3, micro.processor.frames // 2, 32, generator=torch.Generator().manual_seed(0))
    prefix = micro.processor.prefix
    micro.model.eval()
    assert greedy(micro.model, states, prefix, 5) == greedy(micro.model, states, [prefix] * 3, 5)
    assert greedy(micro.model, states[:0], [], 5) == []


def test_a_splits_digest_holds_the_languages(micro: Whisper, table: Path, tmp_path: Path) -> None:
    without, stated = module(table, micro, language_column=None), module(table, micro)
    assert without.languages == []
    assert stated.languages == ["ja", "ko", "en"]
    assert module(table, micro, language="ko").languages == ["ko", "ja", "en"]
    assert without.prepared.digest("test") != stated.prepared.digest("test")
    changed = table.with_name("changed.csv")
    changed.write_text(table.read_text(encoding="utf-8").replace(",en", ",de"), encoding="utf-8")
    assert module(changed, micro).prepared.digest("test") != stated.prepared.digest("test")
    facts = stated.summary()
    assert facts["languages"] == ["ja", "ko", "en"]
    assert facts["splits"]["test"]["languages"] == {"en": 2, "ja": 4, "ko": 4}
    assert "languages" not in without.summary()


def test_a_limit_and_a_sample_take_as_many_of_each_language_as_there_are(micro: Whisper, table: Path) -> None:
    limited = module(table, micro, limit={"train": 7, "validation": 3, "test": None, "sample": False})
    counts = [limited.summary()["splits"][split]["languages"] for split in SPLITS]
    assert counts == [{"en": 2, "ja": 3, "ko": 2}, {"en": 1, "ja": 1, "ko": 1}, {"en": 2, "ja": 4, "ko": 4}]
    clips = limited.clips["test"]
    assert subset(clips, None, 0) == subset(clips, 99, None) == list(clips)
    sampled = subset(clips, 6, 3)
    assert sampled == subset(clips, 6, 3) != subset(clips, 6, None)
    assert [sum(clip.language == code for clip in sampled) for code in TEXTS] == [2, 2, 2]
    assert list(limited.scored("test", 3)) == subset(clips, 3, 0)


def test_a_language_that_a_split_lacks_is_named(micro: Whisper, table: Path, tmp_path: Path) -> None:
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    lacking = table.with_name("lacking.csv")
    lacking.write_text("".join(x for x in lines if not (",test," in x and ",en" in x)), encoding="utf-8")
    with pytest.raises(DataError, match=r"the test split has no clip of the language en .*test 4 ja, 4 ko"):
        module(lacking, micro).setup()
    one = {s: [Clip("a", s, "文", "", Path("a"))] for s in SPLITS}
    check_languages(one)
    check_languages({**one, "test": []})


def test_speakers_of_splits_are_kept_apart_within_a_language(micro: Whisper, table: Path) -> None:
    lines = table.read_text(encoding="utf-8")
    # One speaker of Japanese in training, of Korean in validation, of English in test.
    rows = lines.replace("train one,ja", "x,ja").replace("validation one,ko", "x,ko").replace("test one,en", "x,en")
    shared = table.with_name("shared.csv")
    shared.write_text(rows, encoding="utf-8")
    assert module(shared, micro).clips
    shared.write_text(rows.replace("test one,ja", "x,ja"), encoding="utf-8")
    with pytest.raises(DataError, match="1 speakers are in two splits"):
        module(shared, micro).setup()


def test_a_language_that_the_model_lacks_is_named(micro: Whisper, table: Path) -> None:
    other = table.with_name("other.csv")
    other.write_text(table.read_text(encoding="utf-8").replace(",en", ",yue"), encoding="utf-8")
    tokenizer = micro.processor.tokenizer
    known = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: {k: v for k, v in known.items() if k != "<|yue|>"}  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="the model does not have yue"):
        module(other, micro).setup()


def test_held_out_clips_are_taken_from_each_language() -> None:
    clips = [Clip(f"{code}{i}", "train", "文", "", Path("a"), language=code) for code in ("ja", "ko") for i in range(9)]
    divided = hold_out(Corpus("", clips, []), 0.2).clips
    assert {(clip.split, clip.language) for clip in divided} == {(s, code) for s in SPLITS for code in ("ja", "ko")}
    # Of a language with splits of its own nothing is taken.
    whole = [Clip(f"de {split}", split, "Wort", "", Path("a"), language="de") for split in SPLITS]
    assert hold_out(Corpus("", [*clips, *whole], []), 0.2).clips == [*divided, *whole]
    few = [Clip("en", "train", "word", "", Path("a"), language="en")]
    with pytest.raises(DataError, match="1 speakers or recordings of the language en are too few"):
        hold_out(Corpus("", [*clips, *few], []), 0.2)


def test_joined_windows_hold_one_language_each(table: Path) -> None:
    torch.manual_seed(0)
    whisper = build_whisper(16, 1, 1, 2, window_s=4, timestamps=True, max_label_tokens=200)
    joining = Joining(share=1.0, same_speaker=0.5, timestamps=0.5, previous_text=1.0, silence_s=(0.0, 0.1))
    data = module(table, whisper, joining=joining, global_batch_size=10, trainer=trainer_of(6))
    texts = {text: code for code, of in TEXTS.items() for text in of}
    languages = [clip.language for clip in data.clips["train"]]
    joined = 0
    for step in range(6):
        for clip in range(10):
            assert data.planner is not None
            example = data.planner(step, clip)
            used = [*(placed.clip for placed in example.sentences), *example.previous]
            assert {languages[i] for i in used} == {languages[clip]}
            joined += len(example.sentences) > 1
    assert joined > 30
    for batch in data.train_dataloader():
        check_label_contract(batch, whisper.processor)
        assert batch["labels"].ne(IGNORE_INDEX).sum(dim=1).tolist() == batch["num_tokens"]
        for text, language in zip(batch["texts"], batch["languages"], strict=True):
            # Japanese has no spaces, the others do.
            parts = [t for t, code in texts.items() if code == language and t in text]
            assert parts
            assert (" " in text) <= (language != "ja")


def quiet_trainer(folder: Path, steps: int, **more: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loop = {"max_steps": steps, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**quiet, **loop, "enable_checkpointing": False, **more})


@pytest.mark.filterwarnings("ignore")
def test_a_trained_model_keeps_its_languages_and_other_tools_detect_them(
    micro: Whisper, table: Path, tmp_path: Path
) -> None:
    data = module(table, micro, language="ko", trainer=None)
    trainer = quiet_trainer(tmp_path, 2)
    learner = WhisperModule(micro, adamw(lr=1e-3, warmup_steps=0))
    trainer.fit(learner, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert micro.languages == ["ja", "ko", "en"]
    micro.save(tmp_path / "model")
    saved = json.loads((tmp_path / "model/config.json").read_text(encoding="utf-8"))
    assert saved["kikitori_languages"] == ["ja", "ko", "en"]
    assert json.loads((tmp_path / "model/generation_config.json").read_text(encoding="utf-8"))["language"] is None
    checkpoint = WhisperModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint.whisper.languages == ["ja", "ko", "en"]
    loaded = load_whisper(str(tmp_path / "model"), default_language="fr")
    assert (loaded.processor.language, loaded.languages, loaded.notes) == ("ja", ["ja", "ko", "en"], [])
    other = load_whisper(str(tmp_path / "model"), "Korean")
    assert (other.processor.language, other.notes) == ("ko", [])
    (note,) = load_whisper(str(tmp_path / "model"), "de").notes
    assert note == f"model.language=de is used, as set; {tmp_path / 'model'} was trained with ja, ko, en"
    features = torch.randn(2, 80, micro.processor.frames)
    other.model.eval()
    tokens = other.model.generate(features, max_new_tokens=2)
    detected = other.model.detect_language(features)
    assert torch.equal(other.model.generate(features, max_new_tokens=2, language=None), tokens)
    assert detected.shape == (2,)
    # Trained further on one language, it is a model of one.
    again = WhisperModule(loaded, adamw(lr=1e-3, warmup_steps=0))
    quiet_trainer(tmp_path, 1).fit(again, module(table, loaded, language_column=None, trainer=None))
    loaded.save(tmp_path / "one")
    assert "kikitori_languages" not in json.loads((tmp_path / "one/config.json").read_text(encoding="utf-8"))
    assert load_whisper(str(tmp_path / "one"), default_language="fr").processor.language == "ja"


@pytest.mark.filterwarnings("ignore")
def test_validation_scores_each_clip_by_the_rules_of_its_language(
    micro: Whisper, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    from kikitori.training import lightning_module

    scored = lightning_module.score_clips

    def score_clips(references: list[str], hypotheses: list[str], languages: list[str]) -> Any:
        asked.extend(zip(references, languages, strict=True))  # type: ignore[arg-type]
        return scored(references, hypotheses, languages)

    monkeypatch.setattr(lightning_module, "score_clips", score_clips)
    quiet_trainer(tmp_path, 1).validate(WhisperModule(micro), module(table, micro, trainer=None), verbose=False)
    assert sorted(asked) == sorted((text, code) for code, texts in TEXTS.items() for text in texts)


def test_a_batch_without_languages_is_of_the_models(micro: Whisper) -> None:
    tokens = micro.processor.encode("犬")
    example = {"input_features": torch.zeros(80, 100), "tokens": tokens, "clip": "a", "text": "犬", "seconds": 1.0}
    batch = collate([example])
    assert batch["languages"] == [None]
    check_label_contract(batch, micro.processor)
