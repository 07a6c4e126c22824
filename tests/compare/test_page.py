"""The report as text, and as headless Chromium shows it."""

import base64
import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chromium import open_chromium, requests_sent, widen
from rich.progress import Progress
from run_folders import REFERENCES, write_grid, write_run, write_sweep

from kikitori.compare.leaderboard import leaderboards_of
from kikitori.compare.page import render, script_json, write_page
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.runs.reader import find_runs
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import cache_folder

ATTACK = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"


def page(folder: Path) -> str:
    runs = find_runs([str(folder)])
    tables = leaderboards_of([run for run in runs if run.status == "completed"])
    return render(tables, [run for run in runs if run.status != "completed"], "kikitori compare x --report y")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A grid with audio for one clip, markup in every text of a run that the page shows, and failures."""
    folder = write_grid(tmp_path / "runs")
    soundfile.write(tmp_path / "clip.wav", (8000 * np.sin(np.arange(16000) / 20)).astype(np.int16), 16_000)
    clip = Clip("clip_0.mp3", "validation", "カレー", "a second", tmp_path / "clip.wav")
    name = build_audio_cache([clip], cache_folder() / "store", Progress(disable=True)).path.name
    facts = {"clips": 7, "seconds": 9.0, "digest": "a1b2c3", "store": name}
    data = {"corpus": IMAGE, "language": "ja", "splits": {"validation": facts, "test": facts}}
    references = [*REFERENCES[:5], f"味噌汁{ATTACK}{IMAGE}"]
    given = [f"model.d_model={ATTACK}", f"+note={IMAGE}"]
    config = {"model": {"d_model": ATTACK}, "note": IMAGE}
    write_run(folder / "8-attack", 2, config, given, references=references, data=data)
    for path in folder.glob("*/results.json"):
        results = json.loads(path.read_text())
        results["data"] = data
        path.write_text(json.dumps(results))
    write_run(folder / "9-failed", status="failed", error=f"TrainingError: {ATTACK}{IMAGE}")
    write_run(folder / "10-pruned", status="pruned", error="worse than the median")
    return folder


def test_text_of_a_run_is_never_markup(runs: Path) -> None:
    text = page(runs)
    assert ATTACK not in text
    assert IMAGE not in text
    assert text.count("&lt;script&gt;document") >= 3


def test_the_page_names_every_run_with_commit_and_command(runs: Path) -> None:
    text = page(runs)
    for number in range(8):
        assert f'<td class="name">{number}-model.d_model-' in text
    assert "0123456789ab" in text
    assert "kikitori train model.d_model=32 optim.lr=0.001 seed=0" in text
    assert "worse than the median" in text


def test_the_page_refers_to_nothing_outside_itself(runs: Path) -> None:
    # Plotly's source contains addresses that it never requests; the page's content policy forbids it, too.
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page(runs), flags=re.DOTALL)
    assert not re.findall(r"""\s(?:src|href|srcset|data)=["'](?!#|data:)|url\(|@import""", markup)
    assert "default-src 'none'" in markup


def test_json_in_a_script_cannot_close_it_and_is_json() -> None:
    text = script_json({"a": "</script><!--", "nan": float("nan"), "b": [1.5, (2, float("inf"))]})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--", "nan": None, "b": [1.5, [2, None]]}


def test_two_data_sets_have_a_section_each(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", digest="other")
    text = page(tmp_path)
    assert text.count('class="data-set"') == 2
    assert "must not be compared across tables" in text


def test_runs_without_predictions_have_a_page(tmp_path: Path) -> None:
    shutil.rmtree(write_run(tmp_path / "a", 1) / "predictions")
    shutil.rmtree(write_run(tmp_path / "b", 2, {"optim": {"lr": 0.1}}) / "predictions")
    assert "2 runs compared" in page(tmp_path)


def test_the_title_names_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_grid(tmp_path / "outputs" / "sweep-lr")
    write_sweep(sweep)
    monkeypatch.chdir(tmp_path)
    text = page(sweep)
    assert "<title>outputs/sweep-lr: 8 runs compared – kikitori</title>" in text
    assert "<h1>outputs/sweep-lr: 8 runs compared</h1>" in text


def test_the_title_names_several_sweeps_and_not_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name / "0-x")
        write_sweep(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert "<h1>a, b: 2 runs compared</h1>" in page(tmp_path)


def test_the_title_names_a_few_runs_or_the_folder_of_many(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_run(tmp_path / "group" / name)
    assert "<h1>a, b: 2 runs compared</h1>" in page(tmp_path / "group" / "[ab]")
    assert "<h1>group: 4 runs compared</h1>" in page(tmp_path / "group")


def test_the_exact_command_names_the_folder_without_the_path_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "a", overrides=["optim.lr=1", "resume=auto", "hydra.run.dir=elsewhere"])
    write_run(tmp_path / "runs" / "b,c", status="failed", error="oh", overrides=["optim.lr=2"])
    (tmp_path / "runs" / "b,c" / "train.log").touch()
    monkeypatch.chdir(tmp_path)
    text = html.unescape(page(Path("runs")))
    assert "<code>kikitori train optim.lr=1 hydra.run.dir=runs/a</code>" in text
    quoted = shlex.quote("hydra.run.dir='runs/b,c'")
    assert f"<code>kikitori train optim.lr=2 {quoted}</code>" in text
    assert "runs/b,c/train.log" in text
    assert str(tmp_path) not in text


def test_panels_without_content_are_left_out(tmp_path: Path) -> None:
    shutil.rmtree(write_run(tmp_path / "alone", history=[]) / "predictions")
    text = page(tmp_path)
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.DOTALL)
    assert "Leaderboard" in markup
    for absent in ("figure", "Learning curves", "Two axes", "Seed spread", "Parameter importances", "clip by clip"):
        assert absent not in markup
    # One seed each: the column of its spread would be dashes.
    assert "spread" not in re.findall(r'<th title="([^"]*)"', markup)


def test_the_model_of_the_configuration_is_no_axis_for_an_evaluated_checkpoint(tmp_path: Path) -> None:
    for number, model in enumerate(("base", "tiny")):
        given = [f"model.name={model}", f"optim.lr={number}"]
        config = {"model": {"name": model}, "optim": {"lr": number}}
        write_run(tmp_path / model, 2 + number, config, given)
    config = {"model": {"name": "medium"}, "optim": None, "checkpoint": "outputs/base"}
    write_run(tmp_path / "scored", 1, config, ["checkpoint=outputs/base"], command="evaluate")
    runs = find_runs([str(tmp_path)])
    (table,) = leaderboards_of(runs)
    assert table.rows[0].label == "checkpoint=outputs/base"
    text = page(tmp_path)
    assert "medium" not in text.partition('<article class="runs">')[0].partition("<body>")[2]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = open_chromium(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.quit()


def test_a_page_is_not_written_through_a_link(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("own")
    (tmp_path / "report.html").symlink_to("own.txt")
    with pytest.raises(DataError, match="is a link, a folder or a device; choose another file"):
        write_page(tmp_path / "report.html", leaderboards_of(find_runs(runs)[:1]), [], "kikitori compare")
    assert (tmp_path / "own.txt").read_text() == "own"


@pytest.fixture
def opened(chromium: Any, runs: Path, tmp_path: Path) -> Any:
    """The browser, with the page open at 1280 pixels."""
    found = find_runs([str(runs)])
    tables = leaderboards_of([run for run in found if run.status == "completed"])
    write_page(
        tmp_path / "report.html", tables, [run for run in found if run.status != "completed"], "kikitori compare"
    )
    widen(chromium, 1280)
    chromium.get_log("performance")
    chromium.get_log("browser")
    chromium.get((tmp_path / "report.html").as_uri())
    return chromium


def column(browser: Any, name: str) -> list[str]:
    """The sort values of a column, for the rows that are shown."""
    script = """
        const heads = [...document.querySelectorAll('.leaderboard th')];
        const head = heads.find((head) => head.textContent === arguments[0]);
        const rows = [...document.querySelectorAll('.leaderboard tbody tr')].filter((row) => !row.hidden);
        return rows.map((row) => row.cells[head.cellIndex].dataset.value);
    """
    return browser.execute_script(script, name)


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_draws_sorts_filters_and_plays(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    assert opened.execute_script("return document.querySelectorAll('.plot .main-svg').length") >= 5
    assert opened.execute_script("return document.querySelectorAll('.plot .heatmaplayer image').length") == 1

    heads = {head.text: head for head in opened.find_elements("css selector", ".leaderboard th button")}
    assert column(opened, "#") == ["1", "2", "3", "4", "5"]
    heads["val CER %"].click()
    heads["val CER %"].click()
    rates = list(map(float, column(opened, "val CER %")))
    assert rates == sorted(rates, reverse=True)
    heads["#"].click()
    heads["d_model"].click()
    assert column(opened, "d_model") == ["32", "32", "64", "64", ATTACK]

    words = opened.find_element("css selector", ".filter")
    words.send_keys("d_model=64")
    assert column(opened, "d_model") == ["64", "64"]
    words.send_keys(" lr=0.002")
    assert len(column(opened, "#")) == 1
    assert opened.find_element("css selector", ".leaderboard .count").text == "1 of 5"
    words.send_keys(Keys.CONTROL + "a", Keys.DELETE)
    assert len(column(opened, "#")) == 5
    opened.find_element("css selector", ".alike").click()
    assert 1 <= len(column(opened, "#")) < 5

    play = """
        const [done, player] = [arguments[0], document.querySelector('audio')];
        player.muted = true;
        player.play().then(() => done([player.duration, player.error]), (error) => done(['refused', String(error)]));
    """
    duration, error = opened.execute_async_script(play)
    assert error is None
    assert duration == pytest.approx(1.0, abs=0.2)


@pytest.mark.browser
@pytest.mark.slow
def test_each_run_shows_its_clips_with_their_differences(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    choice = Select(opened.find_element("css selector", ".choose-run"))
    assert len(choice.options) == 9
    choice.select_by_visible_text(next(o.text for o in choice.options if "8-attack" in o.text))
    table = opened.find_element("css selector", ".clip-table")
    assert ATTACK in table.text
    assert opened.execute_script("return document.querySelectorAll('.clip-table .substitute u').length") > 0
    assert opened.execute_script("return document.querySelectorAll('.errors tbody tr').length") > 3
    assert "owned" not in opened.title
    search = opened.find_element("css selector", ".find-clips")
    search.send_keys("紅茶")
    shown = [row.text for row in table.find_elements("css selector", "tbody tr") if row.is_displayed()]
    assert shown
    assert all("紅茶" in text for text in shown)
    search.clear()


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_has_no_error_and_makes_no_request(opened: Any) -> None:
    for select in opened.find_elements("css selector", ".figure select"):
        for option in select.find_elements("tag name", "option"):
            option.click()
    assert requests_sent(opened) == [opened.current_url]
    assert opened.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    widen(opened, width)
    opened.refresh()
    assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    shot = opened.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    assert len(base64.b64decode(shot)) > 10_000
    plots = opened.find_elements("css selector", ".plot")
    assert all(plot.size["width"] <= width for plot in plots)
    # Nothing in a plot lies beyond its edges.
    assert opened.execute_script(BEYOND) == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_no_column_of_the_leaderboard_is_cut(opened: Any, width: int) -> None:
    widen(opened, width)
    opened.refresh()
    box = opened.find_element("css selector", ".leaderboard .scroll")
    assert opened.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", box)
    for name in ("verdict", "rank"):
        left, right = opened.execute_script(EDGES, f".leaderboard td.{name}")
        assert 0 <= left < right <= width


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_legend_leaves_the_chart_more_room_than_it_takes(opened: Any, width: int) -> None:
    widen(opened, width)
    opened.refresh()
    script = """
        const height = (plot, layer) => plot.querySelector(layer)?.getBoundingClientRect().height ?? 0;
        const plots = [...document.querySelectorAll('.plot')];
        return plots.map((plot) => [height(plot, '.legend'), height(plot, '.nsewdrag')]);
    """
    heights = opened.execute_script(script)
    assert any(legend for legend, _ in heights)
    assert all(3 * legend < chart for legend, chart in heights)


# Text of plots that lies outside of the plot's box.
BEYOND = """
    return [...document.querySelectorAll('.plot')].flatMap((plot) => {
        const box = plot.getBoundingClientRect();
        return [...plot.querySelectorAll('text')].filter((text) => {
            const own = text.getBoundingClientRect();
            return own.width && (own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1);
        }).map((text) => text.textContent);
    });
"""
EDGES = """
    const box = document.querySelector(arguments[0]).getBoundingClientRect();
    return [box.left, box.right];
"""
