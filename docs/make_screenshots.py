"""Takes the pictures of pages that docs/leaderboards.md shows, from the committed leaderboards.

    python docs/make_screenshots.py

Needs playwright, and a Chromium on the path. The items are those of the demo, whose texts are ours.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from fedbench.results.items import shown_items
from fedbench.results.leaderboard import build
from fedbench.results.page import write_local_page
from fedbench.results.specification import read_leaderboard

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
BOARDS = DOCS.parent / "leaderboards"
WIDTH = 1280


def main() -> None:
    """Take all of them."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox"],  # as root it cannot be set up
        )
        finance = BOARDS / "finance-tiny" / "index.html"
        page = _open(browser, finance, "light", height=1100)
        page.screenshot(path=IMAGES / "leaderboard_light.png")
        page = _open(browser, finance, "dark", height=1000)
        _show_pictures(page)
        page.screenshot(path=IMAGES / "leaderboard_dark.png")
        page = _open(browser, BOARDS / "partitions" / "index.html", "light", height=620)
        page.get_by_label("fedavg", exact=True).check(force=True)
        page.get_by_label("local", exact=True).check(force=True)
        _show_pictures(page)
        page.screenshot(path=IMAGES / "leaderboard_partitions.png")
        with tempfile.TemporaryDirectory() as directory:
            page = _open(browser, _demo_items(Path(directory)), "light", height=800)
            page.locator("tr.federated button.open").first.click()
            page.screenshot(path=IMAGES / "leaderboard_items.png")
        browser.close()


def _open(browser: Any, file: Path, scheme: str, height: int) -> Any:
    size = {"width": WIDTH, "height": height}
    page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
    page.goto(file.resolve().as_uri())
    return page


def _show_pictures(page: Any) -> None:
    page.locator("#pictures figure").first.evaluate("it => it.scrollIntoView()")
    page.evaluate("scrollBy(0, -110)")  # the filters stay on top


def _demo_items(directory: Path) -> Path:
    spec, runs = read_leaderboard(BOARDS / "demo")
    table = build(spec, runs)
    items, _ = shown_items(table, runs)
    return write_local_page(directory, table, items)


if __name__ == "__main__":
    main()
