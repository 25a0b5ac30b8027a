"""Headless Chromium, in which the report is opened as a person would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DRAWN = "const end = arguments[0]; requestAnimationFrame(() => setTimeout(() => end(performance.now()), 0))"


def start_browser(folder: Path) -> Any:
    """A browser that logs what it asks for and complains of, and saves into the folder; whoever starts it quits it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'user'}"]
    for switch in [*switches, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))


def seconds_to_open(driver: Any, path: Path) -> float:
    """Open a page; seconds from the start of the navigation until it is drawn."""
    driver.get(path.absolute().as_uri())
    return float(driver.execute_async_script(DRAWN)) / 1000
