"""The demo page in headless Chromium, with a microphone that plays a file."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import open_chromium, requests_sent, widen
from demo_page import Visitor, serving
from recordings import encoded, tone
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from kikitori.corpora.manifest import Columns, read
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.demo.examples import Example
from kikitori.demo.models import ShownModel
from kikitori.model.loading import build_whisper
from kikitori.runtime.console import progress_bar

pytestmark = [pytest.mark.browser, pytest.mark.long]

ATTACK = "<img src=x onerror=\"document.title='owned'\">"
# Drops a file with bytes and a name on the page.
DROP = """
    const [bytes, name] = arguments;
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(bytes)], name));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
"""


@pytest.fixture(scope="module")
def models() -> list[ShownModel]:
    """Three models with random weights, the last with another vocabulary."""
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 64, "init_std": 0.02}
    found = [build_whisper(window_s=s, timestamps=s == 4 or None, **small) for s in (2, 3, 4)]
    for whisper in found:
        whisper.configure_generation(max_new_tokens=12, num_beams=1)
    return [ShownModel(title, title, not i, found[i]) for i, title in enumerate(("base", "tuned", ATTACK))]


@pytest.fixture(scope="module")
def visitor(models: list[ShownModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "a.wav").write_bytes(encoded(tone(0.8)))
    with progress_bar() as progress:
        cache = build_audio_cache([Clip("a.wav", "validation", "あ", "1", folder / "a.wav")], folder, progress)
    with serving(models, folder / "recordings", [Example("a.wav", f"ピザ{ATTACK}", [0.5, 0.25], cache)]) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("chromium")
    # As many headsets: 44.1 kHz, and a channel that is silent.
    sound = tone(5.0, 440, rate=44_100)
    (folder / "microphone.wav").write_bytes(encoded(np.stack([np.zeros_like(sound), sound], axis=1), rate=44_100))
    media = [f"use-{name}-media-stream" for name in ("fake-device-for", "fake-ui-for")]
    opened = open_chromium(folder, *media, f"use-file-for-fake-audio-capture={folder}/microphone.wav")
    yield opened
    opened.quit()


@pytest.fixture
def page(chromium: Any, visitor: Visitor) -> Any:
    """The browser with the page open at 1,280 pixels, newly loaded."""
    widen(chromium, 1280)
    chromium.get("about:blank")
    requests_sent(chromium)
    chromium.get_log("browser")
    chromium.get(visitor.address)
    wait(chromium, lambda: chromium.find_elements(By.CSS_SELECTOR, "#examples button"))
    yield chromium
    # Whatever a test did, the page asked nobody else, and its content policy stopped nothing.
    assert all(url.startswith(visitor.access.address) for url in requests_sent(chromium))
    assert [line["message"] for line in chromium.get_log("browser") if "favicon" not in line["message"]] == []
    assert chromium.title == "kikitori demo"


def wait(page: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(page, 30, 0.05).until(lambda _: condition())


def text(page: Any, selector: str) -> str:
    return str(page.find_element(By.CSS_SELECTOR, selector).text)


def finish(page: Any) -> list[str]:
    """Waits for the end of a reading; the text of each model."""
    wait(page, lambda: "is read" in text(page, "#status"))
    script = """
        const rows = [...document.querySelectorAll('#rows .row')];
        return [0, 1, 2].map((i) => rows.map((row) => row.querySelectorAll('.text')[i].textContent).join(''));
    """
    return list(page.execute_script(script))


def drop(page: Any, recording: bytes, name: str = "a.wav") -> None:
    page.execute_script(DROP, list(recording), name)


def test_the_address_of_a_later_start_is_opened(page: Any, visitor: Visitor) -> None:
    page.get(f"{visitor.access.address}#of-a-later-start")
    wait(page, lambda: "open the address that kikitori demo has printed" in text(page, "#fault"))
    page.get_log("browser")  # which has logged the answer


def test_the_microphone_is_read_by_all_models_and_saved_as_a_row(page: Any, visitor: Visitor) -> None:
    button = page.find_element(By.ID, "record")
    button.click()
    wait(page, lambda: button.text == "Stop" and text(page, "#clock") > "1.2 s")
    button.click()
    shown = [found.replace("no text", "") for found in finish(page)]
    assert any(shown)
    assert page.find_elements(By.CSS_SELECTOR, "#rows .c2, #rows .c3, #rows .c4")
    box = page.find_element(By.ID, "text")
    box.clear()
    box.send_keys("四百四十ヘルツ")
    page.find_element(By.CSS_SELECTOR, "#save button").click()
    wait(page, lambda: "has 1 row." in text(page, "#saved"))
    assert "kikitori train" in text(page, "#saved")
    assert "data=manifest data.manifest=" in text(page, "#saved")
    (clip,) = read(str(visitor.server.save_folder / "metadata.csv"), Columns(), ["train"]).clips
    assert clip.text == "四百四十ヘルツ"
    events = visitor.read(Path(str(clip.source)).read_bytes())
    assert 1 < events[0]["seconds"] < 3
    assert [result["text"] for result in events[-1]["end"]] == shown


def test_a_file_is_read_whatever_its_name_is(page: Any, visitor: Visitor) -> None:
    recording = encoded(tone(1.2, 500), "mp3")
    results = visitor.read(recording)[-1]["end"]
    for name in (f"{ATTACK}.mp3", "../../etc/passwd", "\u202ea.wav"):
        drop(page, recording, name)
        wait(page, lambda name=name: page.find_element(By.ID, "recording").get_attribute("textContent") == name)
        finish(page)
        assert page.find_element(By.ID, "text").get_attribute("value") == results[-1]["text"]
    assert [heading.text for heading in page.find_elements(By.CSS_SELECTOR, "#summary h3")][2] == ATTACK


def test_a_file_that_is_no_recording_is_answered_on_the_page(page: Any) -> None:
    drop(page, b"<html><script>alert(1)</script>", "a.wav")
    wait(page, lambda: "is HTML or XML, not a recording" in text(page, "#status"))
    drop(page, encoded(tone(0.5)))
    finish(page)


def test_an_example_shows_what_is_said_and_is_not_saved(page: Any) -> None:
    button = page.find_element(By.CSS_SELECTOR, "#examples button")
    assert "CER 50.0 % → 25.0 %" in button.text
    button.send_keys("\n")  # by the keyboard
    finish(page)
    assert text(page, "#reference .text") == f"ピザ{ATTACK}"
    assert "CER" in text(page, "#summary")
    assert not page.find_element(By.ID, "save").is_displayed()
    assert "is not saved" in text(page, "#unsaved")


def test_two_visitors_are_served_at_once(page: Any) -> None:
    first = page.current_window_handle
    drop(page, encoded(tone(120.0, 300, 8000), rate=8000), "long.wav")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#rows .row"))
    address = page.current_url
    page.switch_to.new_window("tab")
    page.get("about:blank")
    page.get(address)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#examples button"))
    drop(page, encoded(tone(0.7)), "short.wav")
    finish(page)
    page.close()
    page.switch_to.window(first)
    assert "is read" not in text(page, "#status")
    assert page.find_element(By.ID, "progress").is_displayed()
    finish(page)
    assert "can be saved to train on" in text(page, "#unsaved")


def test_a_reading_is_cancelled(page: Any, visitor: Visitor) -> None:
    drop(page, encoded(tone(120.0, 300, 8000), rate=8000), "long.wav")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#rows .row"))
    page.find_element(By.ID, "cancel").click()
    wait(page, lambda: text(page, "#status") == "Cancelled.")
    wait(page, lambda: visitor.server.open == 0)


def test_a_microphone_that_is_refused_or_absent_is_named(page: Any) -> None:
    for name, words in (("NotAllowedError", "may not use the microphone"), ("NotFoundError", "No microphone")):
        refuse = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', arguments[0]));"
        page.execute_script(refuse, name)
        page.find_element(By.ID, "record").click()
        wait(page, lambda words=words: words in text(page, "#fault"))
        assert text(page, "#record") == "Record"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_never_scrolls_sideways_and_has_names_for_all_controls(page: Any, width: int) -> None:
    widen(page, width)
    page.find_element(By.CSS_SELECTOR, "#examples button").click()
    finish(page)
    drop(page, encoded(tone(1.0)), "a" * 200)
    finish(page)
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "image", "meter", "progressbar", "Audio"}
    nameless = [n for n in nodes if n.get("role", {}).get("value") in roles and not n.get("name", {}).get("value")]
    assert [node["role"] for node in nameless] == []


def test_another_site_cannot_use_the_server(chromium: Any, visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<title>another site</title>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            chromium.get(f"http://localhost:{other.server_port}/")
            script = """
                const [address, key, done] = arguments;
                const attempts = ["cors", "no-cors"].flatMap((mode) => [
                  fetch(`${address}api/state`, { mode }),
                  fetch(`${address}api/read`, { mode, method: "POST", body: "x" }),
                  fetch(`${address}api/state`, { mode, headers: { "Kikitori-Key": key } }),
                ]);
                const frame = document.createElement("iframe");
                frame.src = address;
                document.body.append(frame);
                const found = attempts.map((attempt) => attempt.then((r) => r.type + r.status, (error) => error.name));
                Promise.all(found).then((results) => setTimeout(() => done(results), 300));
            """
            found = chromium.execute_async_script(script, visitor.access.address, visitor.access.key)
        finally:
            other.shutdown()
    assert set(found) == {"TypeError"}  # nothing can be read, and an opaque answer is blocked as well
    assert visitor.server.open == 0
    errors = json.dumps(chromium.get_log("browser"))
    assert "frame-ancestors" in errors
    assert "ERR_BLOCKED_BY_RESPONSE.NotSameOrigin" in errors


def test_without_the_key_the_page_says_where_it_is(chromium: Any, visitor: Visitor) -> None:
    chromium.get("about:blank")
    chromium.get(visitor.access.address)
    wait(chromium, lambda: "open the address that kikitori demo has printed" in text(chromium, "#fault"))
    assert not chromium.find_element(By.ID, "record").is_enabled()
    chromium.get_log("browser")


# Draws a text as one that a model has read.
DRAW = """
    const [language, text, done] = arguments;
    import("/results.js").then(({ drawRow }) => {
        const of = { parts: [[text, "", 0.5]], pieces: [[0, 1, 1, "no speech"]] };
        const row = drawRow({ start_s: 0, end_s: 1, models: [of] }, [{ title: text, text_language: language }], true);
        document.getElementById("reading").hidden = false;
        document.getElementById("rows").replaceChildren(row);
        done(getComputedStyle(row.querySelector(".text")).direction);
    });
"""


def test_texts_from_right_to_left_and_without_spaces_are_shown_as_they_are_written(page: Any) -> None:
    assert page.execute_async_script(DRAW, "he", "שלום.") == "rtl"
    assert page.execute_async_script(DRAW, "ja", "こんにちは。") == "ltr"
    box = page.find_element(By.ID, "text")
    page.execute_script("arguments[0].value = 'שלום.'", box)
    assert page.execute_script("return getComputedStyle(arguments[0]).direction", box) == "rtl"
    widen(page, 400)
    page.execute_async_script(DRAW, "en", 3000 * "a")
    assert page.execute_script("return document.documentElement.scrollWidth") <= 400
