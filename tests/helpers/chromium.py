"""Headless Chromium that logs every request and every line of its console."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def open_chromium(profile: Path, *flags: str) -> Any:
    """Starts the browser with a new profile. Skips the test where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip(f"no {'Chromium' if not browser else 'chromedriver'} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = ("background-networking", "component-update", "sync", "gpu")
    for argument in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet), *flags):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def widen(browser: Any, width: int) -> None:
    """Sets the width of the page in pixels."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requests_sent(browser: Any) -> list[str]:
    """The addresses that were requested since the last call."""
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]
