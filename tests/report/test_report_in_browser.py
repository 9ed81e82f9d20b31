"""The page in Debian's chromium, headless (`apt-get install chromium`); skipped where there is none."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from headstart.report.page import write_html_report
from helpers.reported import write_reported

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
CLASSES = ("<script>alert(1)</script>", "\"quoted\" & 'co'", "\U0001f98a fox", "a" * 120, "class 10", "class 9")
MANY = (*CLASSES, *(f"another class {i}" for i in range(34)))
LEAST_CONTRAST = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    if (!element) return [255, 255, 255];
    const [r, g, b, a = 1] = parts(getComputedStyle(element).backgroundColor);
    return a === 1 ? [r, g, b] : behind(element.parentElement).map((c, i) => a * [r, g, b][i] + (1 - a) * c);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(svg, svg *, script)")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const both = [parts(getComputedStyle(element).color), behind(element)];
    const [light, dark] = both.map(luminance).sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), element.outerHTML.slice(0, 90)]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""
HEADINGS = "() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(it => Number(it.tagName[1]))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Of a page of few classes and of one of many, by their number."""
    found = {}
    for classes in (CLASSES, MANY):
        folder = tmp_path_factory.mktemp("project")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            found[len(classes)] = (folder / write_html_report(write_reported(classes, 240))).as_uri()
    return found


@pytest.fixture
def page(browser: Browser, addresses: dict[int, str]) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(addresses[len(CLASSES)])
    yield page
    page.close()


def column(page: Page, table: str, place: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr:not([hidden]) > :nth-child({place})")
    return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("classes", [len(CLASSES), len(MANY)])
def test_it_opens_without_a_word_or_a_request(browser: Browser, addresses: dict[int, str], classes: int) -> None:
    page, said, asked = browser.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(addresses[classes])
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [addresses[classes]]
    assert page.evaluate("document.scripts.length") == 1
    page.close()


@pytest.mark.parametrize("classes", [len(CLASSES), len(MANY)])
def test_images_are_shown_and_have_a_text(browser: Browser, addresses: dict[int, str], classes: int) -> None:
    page = browser.new_page()
    page.goto(addresses[classes])
    widths = page.evaluate("[...document.images].map(it => it.naturalWidth)")
    assert len(widths) > 50
    assert min(widths) > 0
    assert page.evaluate("[...document.images].every(it => it.alt.length > 3)")
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(it => /\\d/.test(it.ariaLabel))")
    assert page.locator("[role=img] > svg").count() >= 9
    page.close()


def test_a_script_that_is_not_ours_does_not_run(page: Page) -> None:
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
    }""")
    assert page.evaluate("window.ran") is None


def test_tables_sort_by_numbers_and_by_names(page: Page) -> None:
    table = "#leaderboard table >> nth=0 >>"
    assert column(page, table, 1) == ["finetune", "knn", "probe"]
    accuracy = page.locator("#leaderboard th button", has_text="Accuracy").first
    for expected in (["finetune", "knn", "probe"], ["probe", "knn", "finetune"]):
        accuracy.click()
        assert column(page, table, 1) == expected
    assert page.locator("#leaderboard th[aria-sort=ascending]").inner_text().startswith("Accuracy")
    page.locator("#per-class th button", has_text="Class").click()
    names = column(page, "#per-class", 1)
    assert names.index("class 9") < names.index("class 10")
    f1 = page.locator("#per-class th button", has_text="F1").first
    for _ in range(2):
        f1.click()
        assert column(page, "#per-class", 4)[-1] == "\N{EN DASH}"  # what is not defined comes last either way


def test_sorting_works_by_keyboard(page: Page) -> None:
    page.locator("#leaderboard th button", has_text="Model").focus()
    page.keyboard.press("Enter")
    assert column(page, "#leaderboard table >> nth=0 >>", 1) == ["finetune", "knn", "probe"]
    assert page.locator("#leaderboard th[aria-sort=ascending]").count() == 1


@pytest.mark.parametrize("target", ["per-class", "gallery"])
def test_filters_leave_what_is_asked_for(page: Page, target: str) -> None:
    items = page.locator(f"#{target} [data-text]")
    before = items.count()
    page.locator(f"input[data-filter={target}]").fill("CLASS 1")
    shown = [item for item in items.all() if item.is_visible()]
    assert 0 < len(shown) < before
    assert all("class 10" in item.inner_text() for item in shown)
    assert page.locator(f"p:has([data-filter={target}]) output").inner_text() == f"{len(shown)} of {before}"
    page.locator(f"input[data-filter={target}]").fill("")
    assert all(item.is_visible() for item in items.all())


@pytest.mark.parametrize("classes", [len(CLASSES), len(MANY)])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, addresses: dict[int, str], classes: int, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(addresses[classes])
    page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, addresses: dict[int, str], scheme: Any) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(addresses[len(CLASSES)])
    page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert dark == (scheme == "dark")
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    page.close()


def test_print_is_on_white_and_whole(page: Page) -> None:
    page.set_viewport_size({"width": 690, "height": 980})
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert page.evaluate("[...document.querySelectorAll('details')].every(it => it.open)")
    assert not page.locator("nav").is_visible()
    assert not page.locator("input").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 690


def test_headings_are_in_order_and_links_lead_somewhere(page: Page) -> None:
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    links = "[...document.querySelectorAll('a[href^=\"#\"]')]"
    assert page.evaluate(f"{links}.every(it => document.getElementById(it.hash.slice(1)))")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(it => it.id)")
    assert len(set(ids)) == len(ids)


def test_it_is_whole_without_scripts(browser: Browser, addresses: dict[int, str]) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(addresses[len(CLASSES)])
    assert page.locator("#per-class tbody tr").count() == len(CLASSES)
    assert page.locator("#gallery img").first.is_visible()
    assert not page.locator("input").first.is_visible()
    assert page.locator("th button").count() == 0
    page.close()


def test_a_class_with_a_scripts_name_is_read_as_it_is(page: Page) -> None:
    assert CLASSES[0] in column(page, "#per-class", 1)
    assert page.locator(".path", has_text=str(Path(CLASSES[1]) / "")).count() > 0
