"""The report as a person meets it: opened from disk in Chromium, with no server and no network."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cluster.evaluate import METRICS, evaluate
from cluster.report import REPORT, render
from data.store import Store
from tests.browser.chromium import EXECUTABLE, Page, open_page
from tests.inspection_fixture import write_inspection

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="chromium is not installed; run tests/system-packages.sh"
)
VISIBLE = "[...document.querySelectorAll('article')].filter(card => card.offsetParent)"
KEYS = f"{VISIBLE}.map(card => card.querySelector('h3').firstChild.textContent.trim())"
LOAD_ALL = """
Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode(); }))
    .then(() => [...document.images].map(image => image.naturalWidth))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("inspection")
    out = Store(str(folder))
    metrics = evaluate(write_inspection(out), {"scratch"}, 0.5) | {"num_failed": 2}
    out.write_bytes(METRICS, json.dumps(metrics).encode())
    out.write_bytes(REPORT, render(out).encode())
    url = (folder / REPORT).as_uri()
    with open_page(url, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_errors(page: Page) -> Iterator[None]:
    yield
    assert page.errors == []


def test_all_pictures_load(page: Page) -> None:
    assert page.run(LOAD_ALL) == [32] * 40 * 3


def test_gallery_is_sorted_by_score(page: Page) -> None:
    scores = page.run(f"{VISIBLE}.map(card => Number(card.querySelector('.row b').textContent))")
    assert len(scores) == 40
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("name", "keys"), [("missed", ["part-000"]), ("false alarm", ["part-001"])]
)
def test_filter_shows_only_its_images(page: Page, name: str, keys: list[str]) -> None:
    page.run(f"document.querySelector('[data-filter=\"{name}\"]').click()")
    assert page.run(KEYS) == keys
    assert page.run("document.querySelector('[aria-pressed=true]').dataset.filter") == name
    assert page.run("document.getElementById('shown').textContent") == "1 on this page"


def test_filters_work_from_the_keyboard(page: Page) -> None:
    page.run("document.querySelector('[data-filter=all]').focus()")
    page.press("Tab", 9)
    page.press("Enter", 13, text="\r")
    assert page.run("document.activeElement.dataset.filter") == "abnormal"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown = page.run(f"{VISIBLE}.map(card => card.querySelector('.chip').textContent)")
    assert shown == ["abnormal"] * 14
    page.run("document.querySelector('[data-filter=all]').click()")
    assert len(page.run(KEYS)) == 40


def test_pixels_of_small_images_stay_sharp(page: Page) -> None:
    style, width = page.run(
        "(image => [getComputedStyle(image).imageRendering, image.clientWidth])(document.images[0])"
    )
    assert style == "pixelated"
    assert width >= 100


def test_no_sideways_scrolling_on_a_narrow_screen(page: Page) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    assert page.run("document.documentElement.scrollWidth") <= 400
    page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize(
    ("scheme", "media", "is_dark"),
    [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)],
)
def test_text_stands_out_in_light_and_dark(
    page: Page, scheme: str, media: str, is_dark: bool
) -> None:
    page.prefer(scheme, media=media)
    histogram = Image.open(io.BytesIO(page.screenshot())).convert("L").histogram()
    background = max(range(256), key=histogram.__getitem__)
    assert (background < 128) is is_dark
    # Text at the other end of the scale from the background.
    ink = histogram[192:] if is_dark else histogram[:64]
    assert sum(ink) > 1000
    axis = page.run("getComputedStyle(document.querySelector('figure text')).fill")
    assert (sum(int(part) for part in axis[4:-1].split(",")) > 384) is is_dark


def test_print_has_every_picture(page: Page) -> None:
    # A person's print command loads lazy pictures first; DevTools' does not.
    page.run(LOAD_ALL)
    page.prefer("light", media="print")
    assert page.pdf().count(b"/Subtype /Image") >= 40 * 3


def test_errors_are_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<img src='gone.png'><script>throw Error('no')</script>", encoding="utf-8")
    with open_page(broken.as_uri(), tmp_path / "profile") as page:
        assert len(page.errors) == 2
