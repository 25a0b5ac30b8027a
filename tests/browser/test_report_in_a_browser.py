"""The report as a person uses it, in headless Chromium: sorts, filters, opens a slide, scores blind, saves the scores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.browser import CHROMIUM, DRIVER, seconds_to_open, start_browser
from benchmarks.report_size import drawn_page, drawn_records, write_report
from ki67.agreement_tables import cohort_agreement
from ki67.index import CUTOFFS, category_names
from ki67.report import ReportSettings, prediction_data, report_html
from ki67.report_pictures import PLOT, picture
from ki67.sheet import add_scores, read_rows
from tests.conftest import ROOT

pytest.importorskip("selenium.webdriver", reason="selenium is not installed; run: make setup-test")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium and its driver; run: apt-get install chromium chromium-driver"
)

MOST_SECONDS = 3.0
MOST_BYTES = 30e6
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/slides.schema.yaml").read_text(encoding="utf-8"))
HOSTILE = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Pictures of two drawn slides."""
    folder = tmp_path_factory.mktemp("phantoms")
    return [drawn_page(folder / str(number), number, area_mm2=1) for number in range(2)]


@pytest.fixture(scope="session")
def cohort(pages: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 200 drawn slides."""
    return write_report(tmp_path_factory.mktemp("cohort"), drawn_records(200), pages)


class Page:
    """A page in the browser, and the few things a test does with it."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, path: Path) -> float:
        """Open a page; seconds from the start of the navigation until it is drawn."""
        return seconds_to_open(self.driver, path)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, words: str, within: str = "body") -> None:
        next(one for one in self.all(f"{within} button") if one.text.strip() == words).click()

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def script(self, text: str) -> Any:
        return self.driver.execute_script(f"return {text}")

    def ids(self) -> list[str]:
        """The slides that the table shows, from top to bottom."""
        return self.script("[...document.querySelectorAll('#slides tbody th')].map((one) => one.innerText)")

    def saved(self) -> str:
        """The file of scores, when it is there."""
        path = self.downloads / "scores.csv"
        for _ in range(100):
            if path.is_file():
                return path.read_text(encoding="utf-8")
            time.sleep(0.05)
        raise AssertionError("no scores.csv was saved")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for, without files, what lies in pages themselves, and the browser's own pages."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "chrome:", "chrome-untrusted:"))]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Starts browsers of a size, dark or light; each must have had nothing to complain of and asked no network."""
    started: list[Page] = []

    def start(width: int = 1440, *, dark: bool = False) -> Page:
        driver = start_browser(tmp_path)
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        started.append(Page(driver, tmp_path))
        return started[-1]

    try:
        yield start
        for page in started:
            assert page.complaints() == []
            assert page.requests() == []
    finally:
        for page in started:
            page.driver.quit()


def start_blind(page: Page, name: str = "") -> None:
    """Begin blind mode, as the first reader or a named one."""
    page.click("Blind mode …")
    if name:
        field = page.one("#reader-name")
        field.clear()
        field.send_keys(name, Keys.ENTER)
    else:
        page.one("#reader-first").click()
        page.click("Start")


def test_200_slides_open_in_time_and_are_not_large(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    seconds = min(page.open(cohort) for _ in range(3))
    assert seconds < MOST_SECONDS
    assert cohort.stat().st_size < MOST_BYTES
    assert len(page.ids()) == 200


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """The report of twelve slides without pictures, with predictions of two of them that have an H&E alone."""
    records = drawn_records(12)
    for record, hostile in zip(records[:2], ("H1", HOSTILE), strict=True):
        record |= {"slide": hostile, "index": None, "index_low": None, "index_high": None, "category": None}
    score = {"value": 0.71, "low": 0.4, "high": 0.88}
    evaluation = {
        "method": "mean_pooling",
        "model": {"method": "mean_pooling", "marker": "Ki-67", "sha256": "ab", "slides": 10, "patients": 9},
        "slide": {"scores": {"spearman": score, "mae": {"value": 0.052, "low": 0.04, "high": 0.07}}},
        "patch": None,
        "notes": ["With 9 patients nothing is narrow."],
        "out_of_fold": [
            {"slide": one["slide"], "index": 0.2, "predicted": 0.25, "predicted_low": 0.1, "predicted_high": 0.45}
            for one in records[2:]
        ],
    }
    told = {"slide": "H1", "predicted_index": 0.314, "predicted_low": 0.2, "predicted_high": 0.5, "reason": ""}
    refused = dict.fromkeys(("predicted_index", "predicted_low", "predicted_high")) | {"slide": HOSTILE}
    drawn = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    shown = asdict(picture(drawn, PLOT))
    predictions = [told, refused | {"reason": f"{HOSTILE}: too few"}]
    prediction = prediction_data(evaluation, predictions, {"patches": shown, "correlations": shown})
    page = {"overview": None, "heatmaps": [], "registration": None, "fields": [], "absent": {}}
    settings = ReportSettings((0.1, 0.2), ("<10%", "10-20%", ">20%"), prediction=prediction)
    path = tmp_path / "report.html"
    path.write_text(report_html(records, [page] * 12, settings), encoding="utf-8")
    return path


def test_predictions_are_in_a_section_of_their_own(browser: Callable[..., Page], predicted: Path) -> None:
    page = browser()
    page.open(predicted)
    section = page.one("#prediction")
    assert "not a measurement" in section.text
    assert "10 slides of 9 patients" in section.text
    rows = [row.text for row in page.all("#predicted tbody tr")]
    assert rows[0].split()[:2] == ["H1", "31.4"]
    assert "20.0 to 50.0 %" in rows[0]
    assert rows[1].endswith("too few")
    assert "0.40 to 0.88" in section.text
    assert [note.text for note in page.all("#prediction .measures p")] == ["With 9 patients nothing is narrow."]
    assert "5.2 points" in section.text
    assert len(page.all("#prediction svg.plot circle.dot")) == 10
    page.one("#prediction summary").click()
    assert [one.is_displayed() for one in page.all("#prediction image")] == [True]
    assert page.driver.title != "run"
    words = page.one("#slides").text
    assert "31.4" not in words
    start_blind(page)
    assert page.all("#prediction") == []


def test_why_two_slides_are_too_few_stands_once(browser: Callable[..., Page], tmp_path: Path) -> None:
    records = drawn_records(2)
    agreement = cohort_agreement(pd.DataFrame([{**one, "reference_index_bo": None} for one in records]))
    page = {"overview": None, "heatmaps": [], "registration": None, "fields": [], "absent": {}}
    path = tmp_path / "report.html"
    path.write_text(report_html(records, [page] * 2, ReportSettings(CUTOFFS, category_names(), agreement)), "utf-8")
    shown = browser()
    shown.open(path)
    words = shown.one("section.card table.pairs").text
    assert words.count("needs at least 3 slides") == 1
    assert words.splitlines()[-1].startswith("–: needs at least 3 slides")


def test_a_report_without_predictions_says_nothing_of_them(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    assert page.all("#prediction") == []


def test_the_table_sorts_and_filters(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    table = pd.read_csv(cohort.with_name("cohort.csv"), keep_default_na=False)
    scored = table[table["index"] != ""].astype({"index": float})
    highest_first = scored.sort_values("index", ascending=False, kind="stable")["slide"].tolist()
    page.one("#sort-index").click()
    assert page.ids()[: len(scored)] == highest_first
    assert page.one("th[aria-sort=descending]").text.startswith("Index")
    page.one("#sort-index").click()
    assert page.ids()[0] == highest_first[-1]
    assert set(page.ids()[len(scored) :]) == set(table["slide"]) - set(scored["slide"])
    page.one("#search").send_keys("p0007")
    time.sleep(0.3)
    assert sorted(page.ids()) == ["S0013", "S0014"]
    page.one("#search").clear()
    page.one("#search").send_keys(" ", Keys.BACKSPACE)
    next(chip for chip in page.all(".chip") if chip.text.startswith("registration doubtful")).click()
    doubtful = table[table["flags"].str.split(";").map(lambda flags: "registration_doubtful" in flags)]["slide"]
    time.sleep(0.3)
    assert sorted(page.ids()) == sorted(doubtful)


def test_a_slide_opens_and_closes_by_keyboard(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    page.one("#slides tbody .open").send_keys(Keys.ARROW_DOWN)
    page.press(Keys.ENTER)
    assert page.one("#slide-heading").text.startswith("S0002")
    assert page.script("document.querySelector('.slide-dialog').contains(document.activeElement)")
    words = page.one(".slide-dialog").text
    for expected in (
        "Ki-67 with the edge of the tumour",
        "Local index and hot spots",
        "IKWG global, weighted",
        "Provenance",
    ):
        assert expected in words
    # Slide, registration, both maps, three fields.
    assert len(page.all(".slide-dialog image")) == 7
    assert [bar.text.split()[0] for bar in page.all(".slide-dialog .color-bar")] == ["0", "0"]
    marks = page.one(".marks .positive:not(.case)")
    assert marks.value_of_css_property("stroke") == "rgb(227, 0, 27)"
    page.press("m")
    assert not marks.is_displayed()
    page.press("m")
    assert marks.is_displayed()
    page.press(Keys.ARROW_RIGHT)
    assert page.one("#slide-heading").text.startswith("S0003")
    page.press(Keys.ESCAPE)
    assert page.all(".slide-dialog[open]") == []
    assert page.script("document.activeElement.innerText") == "S0003"


def test_every_control_can_be_reached_by_tab_and_shows_it(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    seen: list[str] = []
    for _ in range(40):
        page.press(Keys.TAB)
        seen.append(page.script("document.activeElement.id || document.activeElement.innerText"))
        outline = page.script("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen[-1]
    assert {"palette", "theme", "category-of-<10%", "reader-choice", "search", "sort-index", "S0001"} <= set(seen)


def test_every_control_has_a_name(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    page.one("#slides tbody .open").click()
    unnamed = """[...document.querySelectorAll('button, a[href], input, select, [role=img], [role=region], dialog')].filter(
        (one) => !(one.innerText || '').trim() && !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby')
            && !(one.labels && one.labels.length)).map((one) => one.outerHTML.slice(0, 80))"""
    assert page.script(unnamed) == []


def test_a_blind_reader_sees_no_index_before_scoring(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    start_blind(page)
    indices = [f"{100 * record['index']:.1f} %" for record in drawn_records(200) if record["index"]]
    words = page.script("document.body.innerText")
    assert not [index for index in indices if index in words]
    assert page.all(".dot") == []
    assert set(page.script("[...document.querySelectorAll('#slides td .category')].map((one) => one.innerText)")) == {
        "hidden"
    }
    order = page.ids()
    page.one("#sort-index").click()
    assert page.ids() == order
    page.click("Next slide to score")
    assert page.script("document.activeElement.id") == "score"
    for selector in (".marks", ".hot-spots", ".big", ".dot", ".probability"):
        assert page.all(f".slide-dialog {selector}") == []
    dialog = page.script("document.querySelector('.slide-dialog').outerHTML")
    for word in ("highest", "lowest", "median", "positive ("):
        assert word not in dialog


def test_scores_are_checked_shown_kept_and_saved_for_the_sheet(browser: Callable[..., Page], cohort: Path) -> None:
    page = browser()
    page.open(cohort)
    start_blind(page)
    page.click("Next slide to score")
    page.press("many", Keys.ENTER)
    assert page.one("#score-problem").text.startswith("Write a number from 0 to 100")
    page.press(*4 * [Keys.BACKSPACE], "0.5", Keys.ENTER)
    assert page.one("#score-problem").text.startswith("That is 0.5 %")
    page.press(*3 * [Keys.BACKSPACE], "15,5 %", Keys.ENTER)
    index = drawn_records(1)[0]["index"]
    assert page.one(".big").text.startswith(f"{100 * index:.1f} %")
    assert "First reader: 15.5 %" in page.one("#result").text
    page.click("Next slide to score", ".slide-dialog")
    assert page.one("#slide-heading").text.startswith("S0002")
    page.press("40", Keys.ENTER)
    page.press(Keys.ESCAPE)
    page.open(cohort)
    assert "2 of 200 slides scored" in page.one(".banner").text
    page.click("Change reader")
    page.one("#reader-name").send_keys("two words", Keys.ENTER)
    assert page.one(".problem").text.startswith("Write a name of letters")
    page.one("#reader-name").clear()
    page.one("#reader-name").send_keys("bo.2", Keys.ENTER)
    assert "0 of 200 slides scored" in page.one(".banner").text
    page.click("Next slide to score")
    page.press("0", Keys.ENTER)
    page.press(Keys.ESCAPE)
    page.click("Save scores (CSV)")
    scores = page.saved()
    assert scores == "slide,reference_index,reference_index_bo.2\nS0001,0.155,0\nS0002,0.4,\n"
    sheet = "slide\tki67\nS0001\ta.svs\nS0002\tb.svs\nS0003\tc.svs\n"
    rows = read_rows(add_scores(sheet, scores, SCHEMA), SCHEMA, name="slides.tsv")
    assert [row.references for row in rows] == [
        {"reference_index": 0.155, "reference_index_bo.2": 0.0},
        {"reference_index": 0.4},
        {},
    ]
    page.click("Leave blind mode")
    page.click("Stay blind")
    assert page.all(".banner")
    page.click("Leave blind mode")
    page.click("Show every index")
    assert page.all(".banner") == []
    assert len(page.all("#slides td strong")) > 180


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_text_stands_out_and_nothing_is_cut_off(
    browser: Callable[..., Page], cohort: Path, dark: bool, width: int
) -> None:
    page = browser(width, dark=dark)
    page.open(cohort)
    assert page.script("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert page.script("document.documentElement.scrollWidth") <= width
    page.one("#slides tbody .open").click()
    assert page.script("document.querySelector('.slide-dialog').scrollWidth") <= width
    low = page.script("(" + CONTRASTS + ")()")
    assert low == []
    page.press(Keys.ESCAPE)
    page.one("#theme").send_keys("light" if dark else "dark")
    assert page.script("document.documentElement.dataset.theme") == ("light" if dark else "dark")
    page.one("#palette").send_keys("colour")
    assert page.script("getComputedStyle(document.documentElement).getPropertyValue('--negative')") == "#0062c4"
    page.open(cohort)
    assert page.script("document.documentElement.dataset.theme") == ("light" if dark else "dark")


# Texts whose contrast to what is behind them is below 4.5 (WCAG 2.2, 1.4.3), controls that cannot be used left out.
CONTRASTS = """() => {
  const parts = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((parts(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || element.closest("svg, script, :disabled") || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${element.className} ${element.innerText.slice(0, 30)} ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""


def test_hostile_ids_and_texts_run_nothing(
    browser: Callable[..., Page], pages: list[dict[str, Any]], tmp_path: Path
) -> None:
    records = drawn_records(2)
    records[0] |= {"slide": HOSTILE, "patient": "=cmd|' /C calc'!A0", "category": HOSTILE, "flags": ["fold", HOSTILE]}
    records[0]["findings"] = [{"flag": "fold", "message": f'{HOSTILE}: "a"\nb', "stain": "ki67"}]
    records[1] |= {"slide": '=1+"2"\n,x', "patient": "__proto__"}
    page = browser()
    page.open(write_report(tmp_path / "hostile", records, pages))
    assert page.ids()[0] == HOSTILE
    start_blind(page)
    for _ in range(2):
        page.click("Next slide to score", ".slide-dialog[open]" if page.all(".slide-dialog[open]") else "body")
        page.press("10", Keys.ENTER)
    page.press(Keys.ESCAPE)
    page.click("Save scores (CSV)")
    quoted = HOSTILE.replace('"', '""')
    assert page.saved() == f'slide,reference_index\n"{quoted}",0.1\n"\'=1+""2"" ,x",0.1\n'
    assert page.driver.title == "Ki-67 report"
    assert page.all("main img, dialog img, main script") == []


@pytest.mark.slow
def test_3000_slides_open_and_have_pages_of_their_own(
    browser: Callable[..., Page], pages: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = write_report(tmp_path / "large", drawn_records(3000), pages[:1])
    page = browser()
    assert min(page.open(report) for _ in range(3)) < MOST_SECONDS
    assert report.stat().st_size < MOST_BYTES
    assert page.one("main [role=status]").text.replace("\u202f", "") == "3000 slides"
    shown = len(page.ids())
    page.script("document.querySelector('.scroll').scrollTo(0, 1e6)")
    time.sleep(0.5)
    assert len(page.ids()) == 2 * shown
    page.one("#search").send_keys("S2999")
    time.sleep(0.5)
    page.one("#slides tbody .open").click()
    assert page.driver.current_url.endswith("report_pages/S2999.html")
    assert page.one("#slide-heading").text.startswith("S2999")
    page.one("#next").click()
    assert page.one("#slide-heading").text.startswith("S3000")
    page.one("header a").click()
    start_blind(page)
    page.click("Next slide to score")
    assert page.all(".big") == []
    page.one("#score").send_keys("12", Keys.ENTER)
    assert page.all(".big")
    page.one("#next").click()
    assert page.one("#score").is_displayed()
    page.one("header a").click()
    assert "1 of 3000 slides scored" in page.one(".banner").text
