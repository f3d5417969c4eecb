"""The page in a real browser: no error, no request, nothing wider than the screen, readable, and it prints."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page, sync_playwright

from tests.trainer.report.conftest import write_logs
from trainer.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH to open the page with")

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDTHS = (1280, 390)
A4 = 688
"""CSS pixels between the margins of a sheet."""

TOO_WIDE = """() => [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`)"""

# WCAG 2.2, 1.4.3: 4.5 between text and what is painted below it
TOO_PALE = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => channels(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const painted = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (channels(c)[3] !== 0) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll('body *')].filter(own).filter(e => e.checkVisibility()).map(e => {
    const style = getComputedStyle(e), inSvg = e.closest('svg');
    const [a, b] = [light(inSvg ? style.fill : style.color), light(painted(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`];
  }).filter(([contrast]) => contrast < 4.5);
}"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=ARGUMENTS.split(), timeout=300_000
        )
        context.set_default_timeout(300_000)
        yield context.new_page()
        context.close()
    left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    psutil.wait_procs(left, timeout=60)
    assert [one for one in left if one.is_running()] == []


@pytest.fixture(params=["one run", "three runs", "no data"])
def page_file(
    request: pytest.FixtureRequest, tmp_path: Path, nasty: Path, make_whole_run: Callable[..., Path]
) -> Path:
    count = 3 if request.param == "three runs" else 1
    long = "a-very-long-name-of-a-run-that-somebody-thought-would-tell-everything-about-it"
    runs = [make_whole_run(tmp_path / f"{long}-{place}", place) for place in range(count)]
    write_logs(runs[0], 300, **{f"term_{place}": float("nan") if place == 1 else place for place in range(9)})
    out = tmp_path / "page.html"
    write_report(runs, None if request.param == "no data" else nasty, out)
    return out


def test_a_browser_shows_the_page_whole_and_prints_it(browser: Page, page_file: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    asked: list[str] = []
    browser.on("console", lambda message: heard.append(message.text))
    browser.on("pageerror", lambda error: heard.append(str(error)))
    browser.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    browser.on("request", lambda request: asked.append(request.url))

    def look(width: int, **media: Any) -> None:
        browser.set_viewport_size({"width": width, "height": 900})
        browser.emulate_media(**media)
        assert browser.evaluate(TOO_WIDE) == [], (width, media)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, media)
        assert browser.evaluate(TOO_PALE) == [], (width, media)

    browser.goto(page_file.as_uri())
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            look(width, color_scheme=scheme)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 26)"
    look(A4, media="print")
    # on paper it is light, whatever the screen
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.pdf(path=tmp_path / "page.pdf", format="A4", print_background=True)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    missing = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    assert browser.evaluate(missing) == 0
    assert browser.locator("h1").count() == 1
    assert heard == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
