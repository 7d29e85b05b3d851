"""The page in a real headless browser: what a reader clicks, types and sees.

Needs playwright and a Chromium or Chrome on the path, or the one that playwright downloads.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from making import federation, model, results

from fedbench.results.leaderboard import build
from fedbench.results.page import render_html
from fedbench.results.samples import Results
from fedbench.results.specification import LeaderboardSpec, spec_for
from fedbench.results.table import Table

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 1\">"
Open = Callable[..., Any]
DISTANCE = """([one, other]) => {
  const pixel = colour => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const [a, b] = [pixel(one), pixel(other)];
  return Math.hypot(...a.map((value, n) => value - b[n]));
}"""
"""How far two colours of CSS are from each other, in red, green and blue."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            # As root, and in containers, Chromium's own sandbox cannot be set up.
            opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a table's page from file://; afterwards nothing may have gone wrong on it."""
    contexts, complaints, requests = [], [], []

    def open_(table: Table, items: dict[str, Any] | None = None, scheme: str = "light") -> Any:
        file = tmp_path / "index.html"
        file.write_text(render_html(table, items), encoding="utf-8")
        size = {"width": 1280, "height": 900}
        contexts.append(browser.new_context(color_scheme=scheme, viewport=size))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def finance() -> Table:
    made = results(federation(seeds=(0, 1)), {"fpb": 120, "medqa": 90})
    spec = LeaderboardSpec(
        name="made", tasks=("fpb", "medqa"), metrics=("weighted_f1", "accuracy"), seeds=(0, 1)
    )
    return build(spec, [made])


SPLITS: dict[str, dict[str, Any]] = {
    "even": {"data": {"partition": {"by": "iid"}}},
    "skewed": {"data": {"partition": {"by": "dirichlet", "alpha": 0.1}}},
}
MODELS = {name: {"model": {"name": f"owner/{name}"}} for name in ("small", "large")}


def two_settings(settings: dict[str, dict[str, Any]]) -> list[Results]:
    """The same federation in two settings."""
    made = []
    for name, config in settings.items():
        run = results(federation(), path=Path(name), config=config)
        assert run.run is not None
        made.append(dataclasses.replace(run, run=run.run.model_copy(update={"run": name})))
    return made


def labels(page: Any) -> list[str]:
    """The first column of the first table, as far as it is seen."""
    rows = page.locator("table.scores").first.locator("tbody tr:visible td:first-child")
    return [str(text) for text in rows.all_inner_texts()]


def test_a_heading_sorts_and_a_second_press_turns_the_order_round(open_page: Open) -> None:
    page = open_page(finance())
    heading = page.get_by_role("button", name="fpb (%)").first
    heading.click()
    assert labels(page)[0] == "centralised"
    assert labels(page)[-1] == "base"
    heading.press("Enter")  # the keyboard does what the mouse does
    assert labels(page)[0] == "base"
    assert page.locator("th[aria-sort=ascending]").count() == 1


def test_an_algorithm_is_filtered_in_tables_and_pictures(open_page: Open) -> None:
    page = open_page(finance())
    page.get_by_label("fedavg", exact=True).check(force=True)
    shown = labels(page)
    assert "fedavg" in shown
    assert not {"fedprox", "mean local", "centralised"} & set(shown)
    assert {"base", "majority"} <= set(shown)  # they belong to no algorithm
    assert page.locator("#count").inner_text() == "3 of 6 rows"
    drawn = page.locator("#intervals svg").first.text_content()
    assert "fedavg" in drawn
    assert "fedprox" not in drawn
    page.get_by_role("button", name="show all").click()
    playwright.expect(page.locator("#count")).to_have_text("6 of 6 rows")


def test_a_domain_filters_the_columns(open_page: Open) -> None:
    page = open_page(finance())
    page.get_by_label("medical", exact=True).check(force=True)
    heads = page.locator("table.scores").first.locator("th:visible").all_inner_texts()
    assert "medqa (%)" in heads
    assert "fpb (%)" not in heads


def test_a_split_is_filtered_and_the_base_stays(open_page: Open) -> None:
    made = two_settings(SPLITS)
    page = open_page(build(spec_for(None, made[0].scores), made))
    page.get_by_label("dirichlet 0.1", exact=True).check(force=True)
    shown = labels(page)
    assert "fedavg · dirichlet 0.1" in shown
    assert "fedavg · iid" not in shown
    assert "base" in shown


def test_a_base_model_is_filtered_with_its_own_base(open_page: Open) -> None:
    made = two_settings(MODELS)
    page = open_page(build(spec_for(None, made[0].scores), made))
    page.get_by_label("large", exact=True).check(force=True)
    assert {label.split(" · ")[-1] for label in labels(page)} == {"large"}
    assert "base · large" in labels(page)


def test_a_row_is_found_by_typing(open_page: Open) -> None:
    page = open_page(finance())
    page.keyboard.press("/")
    page.keyboard.type("prox")
    assert labels(page) == ["fedprox"]


def test_every_picture_is_drawn(open_page: Open) -> None:
    page = open_page(finance())
    for name in ("intervals", "curves", "bytes", "clients"):
        assert page.locator(f"#{name} svg").last.is_visible(), name
    page.locator("#column").select_option(label="medqa (weighted_f1)")
    assert "medqa" in page.locator("#curves svg").last.get_attribute("aria-label")


def test_the_heat_map_colours_the_best_row_of_a_column_most(open_page: Open) -> None:
    page = open_page(finance())
    rows = page.locator("table.heat tbody tr")
    assert rows.count() == 6

    def colour(label: str) -> str:
        name = page.get_by_role("cell", name=label, exact=True)
        cell = rows.filter(has=name).locator("td").nth(1)
        return str(cell.evaluate("td => getComputedStyle(td).backgroundColor"))

    colours = [colour(label) for label in ("base", "mean local", "fedavg", "centralised")]
    assert len(set(colours)) == 4  # better from one to the next
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    strengths = [page.evaluate(DISTANCE, [colour, paper]) for colour in colours]
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_then_the_reader(open_page: Open, scheme: str) -> None:
    page = open_page(finance(), scheme=scheme)

    def is_dark() -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 300

    assert is_dark() == (scheme == "dark")
    page.keyboard.press("d")
    assert is_dark() == (scheme == "light")


def test_a_page_in_the_dark_is_printed_dark_on_white(open_page: Open) -> None:
    page = open_page(finance(), scheme="dark")
    page.locator("#theme").click()
    page.locator("#theme").click()  # dark by choice, too
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"


def test_paper_loses_no_column_and_a_long_name_widens_no_page(open_page: Open) -> None:
    long = "fedavg_" * 30
    made = results({model(long, "global", 0, round=r): 0.8 for r in (1, 2)})
    page = open_page(build(spec_for(made.run, made.scores), [made]))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    cell = page.locator("table.scores td").first.bounding_box()
    assert cell["width"] < 195  # half of a phone is left for numbers
    page = open_page(finance())
    page.set_viewport_size({"width": 720, "height": 1000})
    page.emulate_media(media="print")
    widths = page.eval_on_selector_all(".scroll", "them => them.map(it => it.scrollWidth)")
    assert max(widths) <= 720


def test_a_score_opens_its_items_with_answers_as_text(open_page: Open) -> None:
    table = finance()
    place = [row.label for row in table.rows].index("fedavg")
    verdicts = ["right", "wrong"]
    items = {
        "fpb": {
            "total": 2,
            "items": [{"id": f"test/{n}", "prompt": HOSTILE, "reference": "up"} for n in (0, 1)],
            "models": [
                {
                    "row": place,
                    "name": "seed 0",
                    "answers": [
                        {"answer": "up", "completion": HOSTILE, "verdict": v, "error": None}
                        for v in verdicts
                    ],
                }
            ],
        }
    }
    page = open_page(table, items)
    page.locator(f"tr[data-row='{place}'] button.open").first.press("Enter")
    articles = page.locator("#items article")
    assert articles.count() == 2
    assert HOSTILE in articles.first.inner_text()
    assert page.locator("#items script, #items img").count() == 0
    page.locator("#drill-verdict").select_option("wrong")
    assert page.locator("#items .verdict").all_inner_texts() == ["wrong"]
    page.locator("#items").focus()
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className") == "item"
    page.keyboard.press("Escape")
    assert not page.locator("#drill").is_visible()
    assert page.title() == table.title


def test_names_with_markup_are_text_in_pictures_too(open_page: Open) -> None:
    made = results(
        {model(HOSTILE, "global", 0, round=r): 0.8 for r in (1, 2)} | {model("base", "base"): 0.3}
    )
    table = build(spec_for(made.run, made.scores), [made])
    page = open_page(table)
    assert page.locator("#pictures script, #pictures img").count() == 0
    assert HOSTILE in labels(page)
    assert page.title() == table.title
