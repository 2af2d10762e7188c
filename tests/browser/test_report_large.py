"""The report of 10,000 images: one page of cards at a time, sorted, filtered, by keyboard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.report import REPORT, build_report
from data.store import Store
from tests.browser.chromium import EXECUTABLE, Page, open_page
from tests.inspection_fixture import write_inspection

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="chromium is not installed; run tests/system-packages.sh"
)
NUM_IMAGES = 10_000
PAGE_SIZE = 60
KEYS = "[...document.querySelectorAll('.open')].map(button => button.textContent)"
FOCUSED = "document.activeElement.textContent"
CODES = {"Enter": 13, "Escape": 27}
FAILURES = [{"key": f"bad-{i}", "source": f"{i}.png", "reason": "is empty"} for i in range(1234)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inspection")


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    out = Store(str(folder))
    table = write_inspection(
        out,
        num_images=NUM_IMAGES,
        review_from=0.45,
        num_pictured=3,
        unit_size=2_000,
        failed=FAILURES,
    )
    build_report(out)
    return table


@pytest.fixture(scope="module")
def page(
    folder: Path, table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    with open_page((folder / REPORT).as_uri(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _fresh(page: Page) -> Iterator[None]:
    page.run("document.activeElement.blur(); document.getElementById('query').reset(); search()")
    yield
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def _set(page: Page, **values: str) -> None:
    for name, value in values.items():
        page.run(
            f"(node => {{ node.value = {json.dumps(value)};"
            " node.dispatchEvent(new Event('input', {bubbles: true})) })"
            f"(document.getElementById('{name}'))"
        )


def _press(page: Page, *keys: str) -> None:
    for key in keys:
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        page.press(key, CODES.get(key, 0), text=text)


def _count(page: Page) -> int:
    return int(page.run("shown.length"))


def _first(table: pd.DataFrame, by: str, *, ascending: bool) -> list[str]:
    """Keys of the first page, equal values in the order of the files."""
    return list(table.sort_values(by, ascending=ascending, kind="stable")["key"][:PAGE_SIZE])


def test_one_page_of_cards_is_in_the_document(page: Page, table: pd.DataFrame) -> None:
    assert _count(page) == NUM_IMAGES
    assert page.run(KEYS) == _first(table, "score", ascending=False)
    assert page.run("document.getElementById('page').textContent") == "page 1 of 167"
    assert page.run("document.querySelectorAll('*').length") < 3_000


@pytest.mark.parametrize(
    ("order", "ascending"), [("score", False), ("p_value", True), ("peak", False), ("key", True)]
)
def test_choosing_an_order_puts_the_most_suspicious_first(
    page: Page, table: pd.DataFrame, order: str, ascending: bool
) -> None:
    _set(page, order=order)
    assert page.run(KEYS) == _first(table, order, ascending=ascending)
    _set(page, direction="down" if ascending else "up")
    assert page.run(KEYS) == _first(table, order, ascending=not ascending)


def test_filters_count_what_they_show(page: Page, table: pd.DataFrame) -> None:
    review = table["decision"] == "review"
    assert review.any()
    _set(page, decision="review")
    assert _count(page) == review.sum()
    _set(page, label="abnormal")
    assert _count(page) == (review & (table["label"] == "abnormal")).sum()
    _set(page, decision="", kind="pit")
    assert _count(page) == (table["kind"] == "pit").sum()
    _set(page, label="", kind="", text="part-99")
    assert _count(page) == table["key"].str.contains("part-99").sum()
    _set(page, text="", area="14")
    largest = table["regions"].map(lambda found: max((r["area"] for r in found), default=0))
    assert _count(page) == (largest >= 14).sum()
    page.run("document.querySelector('[type=reset]').click()")
    page.run("new Promise(done => setTimeout(done))")
    page.run("document.getElementById('pictured').click()")
    assert _count(page) == 3


def test_searching_is_quick(page: Page) -> None:
    # Far above what it takes, so that only a slip such as a search in quadratic time fails.
    _set(page, text="part")
    once = "(t => { search(); return performance.now() - t })(performance.now())"
    assert min(page.run(once) for _ in range(5)) < 1_000


def test_keys_walk_through_cards_and_pages(page: Page) -> None:
    keys = page.run("shown.slice(0, 130).map(i => rows.key[i])")
    _press(page, "j")
    assert page.run(FOCUSED) == keys[0]
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    _press(page, "j", "ArrowRight", "k", "ArrowLeft", "j")
    assert page.run(FOCUSED) == keys[1]
    columns = page.run("perRow()")
    assert columns > 1
    _press(page, "ArrowDown")
    assert page.run(FOCUSED) == keys[1 + columns]
    _press(page, "n")
    assert page.run(FOCUSED) == keys[PAGE_SIZE]
    _press(page, "k")
    assert page.run(FOCUSED) == keys[PAGE_SIZE - 1]
    _press(page, "j", "n", "n", "p", "p", "p", "k", "ArrowUp")
    assert page.run(FOCUSED) == keys[0]
    assert page.run("document.querySelectorAll('.open[tabindex=\"0\"]').length") == 1


def test_large_view_by_keyboard_goes_on_over_the_end_of_a_page(page: Page) -> None:
    keys = page.run("shown.slice(0, 62).map(i => rows.key[i])")
    title = "document.getElementById('viewer-title').firstChild.data"
    page.run(f"go({PAGE_SIZE - 1}); button().focus()")
    _press(page, "Enter")
    assert page.run(title) == keys[PAGE_SIZE - 1]
    _press(page, "ArrowRight", "j")
    assert page.run(title) == keys[PAGE_SIZE + 1]
    _press(page, "ArrowLeft")
    assert page.run(title) == keys[PAGE_SIZE]
    _press(page, "Escape")
    assert not page.run("viewer.open")
    # The event that moves the focus back comes a moment later.
    assert page.soon(FOCUSED, keys[PAGE_SIZE])


def test_slash_leads_to_the_text_filter_and_escape_back(page: Page) -> None:
    _press(page, "j", "/")
    assert page.run("document.activeElement.id") == "text"
    _press(page, *"part-12")
    assert page.run("document.getElementById('text').value") == "part-12"
    page.run("document.getElementById('text').value = 'j'; search()")
    _press(page, "j")
    assert page.run("document.getElementById('text').value") == "jj"
    _set(page, text="part-12")
    _press(page, "Escape")
    assert page.run("document.activeElement.className") == "open"


def test_keys_of_the_browser_stay_its_own(page: Page) -> None:
    pressed = "new KeyboardEvent('keydown', {key: 'n', bubbles: true, %s})"
    for modifier, wanted in (("ctrlKey: true", 0), ("metaKey: true", 0), ("shiftKey: true", 1)):
        page.run(f"document.body.dispatchEvent({pressed % modifier}); undefined")
        assert page.run("page") == wanted, modifier


def test_question_mark_lists_the_keys(page: Page) -> None:
    _press(page, "?")
    assert page.run("document.getElementById('help').open")
    _press(page, "j")
    assert page.run("document.activeElement.className") != "open"
    _press(page, "Escape")
    assert not page.run("document.getElementById('help').open")


def test_all_failed_inputs_can_be_paged_to(page: Page) -> None:
    cells = "[...document.querySelectorAll('#failed-rows tr')].map(row => row.cells[0].textContent)"
    seen: list[Any] = page.run(cells)
    while not page.run("document.getElementById('failed-page-on').disabled"):
        page.run("document.getElementById('failed-page-on').click()")
        seen += page.run(cells)
    assert seen == [row["key"] for row in FAILURES]


def test_images_without_pictures_show_their_numbers(page: Page, table: pd.DataFrame) -> None:
    _set(page, text="part-00")
    _set(page, order="key")
    keys = sorted(table["key"][table["key"].str.contains("part-00")])
    assert page.run(KEYS) == keys
    cards = "[...document.querySelectorAll('.card')]"
    pictures = page.run(f"{cards}.map(card => card.querySelectorAll('img').length)")
    assert pictures == [4, 4, 4] + [0] * (len(keys) - 3)
    texts = page.run(f"{cards}.map(card => card.querySelector('.row').textContent)")
    scores = table.set_index("key").loc[keys, "score"]
    assert [float(text.split()[1]) for text in texts] == pytest.approx(list(scores), rel=1e-3)
    assert not page.run("document.getElementById('no-pictures').hidden")
