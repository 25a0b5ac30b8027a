"""Write the pictures of the README, small, from the results of the demo.

Usage: .venv/bin/python .ci/pictures.py [demo]

Pictures of a slide are those that the workflow wrote. The report is photographed in Chromium, which must be installed.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
SLIDE = "flipped"
OF_THE_SLIDE = ("registration", "tumor_he", "overlay", "fields", "local_index")
MOST_BYTES = 200_000
WIDTH_PX = 1200
WINDOW_PX = (1280, 900)


def write_small(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG, of at most ``WIDTH_PX`` across, as good as ``MOST_BYTES`` allow."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH_PX:
        picture = picture.resize((WIDTH_PX, round(picture.height * WIDTH_PX / picture.width)), Image.Resampling.LANCZOS)
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() < MOST_BYTES:
            path.write_bytes(file.getvalue())
            return
    raise SystemExit(f"{path.name} does not fit into {MOST_BYTES} bytes; make WIDTH_PX smaller")


def photographs(report: Path) -> dict[str, Image.Image]:
    """The first view of the report, and that of a slide, as a browser shows them."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        raise SystemExit("there is no Chromium and its driver; run: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": WINDOW_PX[0], "height": WINDOW_PX[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        )
        driver.get(report.resolve().as_uri())
        pictures = {"report": Image.open(io.BytesIO(driver.get_screenshot_as_png()))}
        rows = driver.find_elements(By.CSS_SELECTOR, "#slides tbody th .open")
        next(row for row in rows if row.text == SLIDE).click()
        driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 500))")
        pictures["report_slide"] = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    finally:
        driver.quit()
    return pictures


def main() -> None:
    """Write all of them."""
    results = Path(*sys.argv[1:2] or ["demo"]) / "results"
    if not (results / "cohort" / "report.html").is_file():
        raise SystemExit(f"{results} holds no finished cohort; run: make demo")
    FOLDER.mkdir(exist_ok=True)
    for name, picture in photographs(results / "cohort" / "report.html").items():
        write_small(picture, FOLDER / f"{name}.jpg")
    for name in OF_THE_SLIDE:
        with Image.open(results / SLIDE / f"{name}.png") as picture:
            write_small(picture, FOLDER / f"{name}.jpg")


if __name__ == "__main__":
    main()
