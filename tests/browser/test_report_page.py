"""The report as a person meets it: opened from disk in Chromium, with no server and no network."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cluster.evaluate import METRICS, evaluate
from cluster.inspection_files import write_unit
from cluster.report import REPORT, build_report
from data.store import Store
from tests.browser.chromium import EXECUTABLE, Page, open_page
from tests.inspection_fixture import FAILED, write_inspection

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="chromium is not installed; run tests/system-packages.sh"
)
KEYS = "[...document.querySelectorAll('.open')].map(button => button.textContent)"
LOAD_ALL = """
Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode(); }))
    .then(() => [...document.images].map(image => image.naturalWidth))
"""
HOSTILE = "</script><script>document.title='taken'</script>'\"<img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("inspection")
    out = Store(str(folder))
    metrics = evaluate(write_inspection(out), {"scratch"}, 0.5) | {"num_failed": 2}
    out.write_bytes(METRICS, json.dumps(metrics).encode())
    build_report(out)
    url = (folder / REPORT).as_uri()
    with open_page(url, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _fresh(page: Page) -> Iterator[None]:
    page.run("document.getElementById('query').reset(); search(); viewer.close()")
    yield
    assert page.errors == []


def _set(page: Page, name: str, value: str) -> None:
    page.run(
        f"(node => {{ node.value = {json.dumps(value)};"
        " node.dispatchEvent(new Event('input', {bubbles: true})) })"
        f"(document.getElementById('{name}'))"
    )


def test_all_pictures_load(page: Page) -> None:
    assert page.run("[...document.images].every(image => image.loading === 'lazy')")
    assert page.run(LOAD_ALL) == [32] * 40 * 4


def test_map_fades_over_its_image(page: Page) -> None:
    opacity = "Number(getComputedStyle(document.querySelector('.heat')).opacity)"
    assert page.run(opacity) == pytest.approx(0.7)
    _set(page, "opacity", "20")
    assert page.run(opacity) == pytest.approx(0.2)
    layers = page.run("[...document.querySelector('.heat').parentNode.children].map(n => n.alt)")
    assert [str(name).split(" ")[0] for name in layers[:2]] == ["image", "map"]
    _set(page, "opacity", "70")


def test_boxes_lie_around_the_regions_and_can_be_hidden(page: Page) -> None:
    shifts = page.run("""[...document.querySelectorAll('.card .boxes .line')].map((rect) => {
        const i = Number(rect.closest('.card').dataset.image);
        const number = [...rect.parentNode.querySelectorAll('.line')].indexOf(rect);
        const box = regionsOf(i)[number], at = rect.getBoundingClientRect();
        const pane = rect.closest('.pane').getBoundingClientRect();
        const scale = pane.width / rows.width[i];
        return [
            pane.left + box.x * scale - at.left,
            at.right - pane.left - (box.x + box.width) * scale,
            pane.top + box.y * scale - at.top,
            at.bottom - pane.top - (box.y + box.height) * scale,
        ];
    })""")
    assert len(shifts) > 14
    assert all(0 < gap < 3 for each in shifts for gap in each)
    visible = "document.querySelector('.boxes').checkVisibility()"
    assert page.run(visible)
    page.press("b", 66)
    assert not page.run(visible)
    page.press("b", 66)
    assert page.run(visible)


@pytest.mark.parametrize(
    ("name", "value", "keys"),
    [
        ("outcome", "missed", ["part-000"]),
        ("outcome", "false alarm", ["part-001"]),
        ("text", "PART-003", ["part-003"]),
        ("text", "nothing", []),
    ],
)
def test_filter_shows_only_its_images(page: Page, name: str, value: str, keys: list[str]) -> None:
    _set(page, name, value)
    assert page.run(KEYS) == keys
    assert page.run("document.getElementById('count').textContent") == f"{len(keys)} of 40 images"
    assert page.run("document.getElementById('none').hidden") is bool(keys)


def test_number_of_the_confusion_matrix_shows_its_images(page: Page) -> None:
    cell = "document.querySelector('[data-label=abnormal][data-decision=normal]')"
    assert page.run(f"{cell}.textContent") == "1"
    page.run(f"{cell}.click()")
    assert page.run(KEYS) == ["part-000"]


def test_large_view_shows_pictures_and_regions(page: Page) -> None:
    page.run("document.querySelector('.panes').click()")
    assert page.run("document.getElementById('viewer').open")
    sizes = page.run(
        "[...document.querySelectorAll('#viewer .pane')].map(pane => pane.clientWidth)"
    )
    assert len(sizes) == 3
    assert min(sizes) > 300
    regions = page.run("regionsOf(shown[0]).map(each => each.area)")
    cells = (
        "[...document.querySelectorAll('.regions tbody tr')].map(row => row.cells[5].textContent)"
    )
    assert page.run(cells) == [str(area) for area in regions]
    assert page.run("document.querySelectorAll('#viewer .boxes text').length") == 2 * len(regions)
    page.press("Escape", 27)
    assert not page.run("document.getElementById('viewer').open")
    # The event that moves the focus back comes a moment later.
    assert page.soon("document.activeElement.textContent", page.run(f"{KEYS}[0]"))


def test_names_of_roles_are_there(page: Page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    found = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n}
    assert ("list", "Images") in found
    assert ("search", "Images to show") in found
    assert ("button", "next page of images") in found
    assert ("slider", "strength of the map over the image, in percent") in found
    assert ("image", "ROC curve") in found
    # Nothing a person can act upon is without a name.
    acting = {"button", "combobox", "checkbox", "slider", "searchbox", "spinbutton", "link"}
    assert [role for role, name in found if role in acting and not name] == []


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
    page.run("openViewer()")
    assert page.run("viewer.scrollWidth <= viewer.clientWidth")
    page.run("viewer.close()")
    page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize(
    ("scheme", "media", "is_dark"),
    [("light", "screen", False), ("dark", "screen", True), ("dark", "print", False)],
)
def test_text_stands_out_in_light_and_dark(
    page: Page, scheme: str, media: str, is_dark: bool
) -> None:
    page.prefer(scheme, media=media)
    page.run("scrollTo(0, 0)")
    histogram = Image.open(io.BytesIO(page.screenshot())).convert("L").histogram()
    background = max(range(256), key=histogram.__getitem__)
    assert (background < 128) is is_dark
    # Text at the other end of the scale from the background.
    ink = histogram[192:] if is_dark else histogram[:64]
    assert sum(ink) > 1000
    axis = page.run("getComputedStyle(document.querySelector('figure text')).fill")
    assert (sum(int(part) for part in axis[4:-1].split(",")) > 384) is is_dark
    page.prefer("light")


def test_print_has_pictures_and_tables_but_no_controls(page: Page) -> None:
    # A person's print command loads lazy pictures first; DevTools' does not.
    page.run(LOAD_ALL)
    page.prefer("light", media="print")
    # Each picture is in the file once, however often it is shown.
    assert page.pdf().count(b"/Subtype /Image") >= 40 * 3
    hidden = "[...document.querySelectorAll('.controls, dialog')].some(n => n.checkVisibility())"
    assert not page.run(hidden)
    for shown in ("#confusion", "#kinds", "#failed-rows", ".charts figure", ".card"):
        assert page.run(f"document.querySelector('{shown}').checkVisibility()"), shown
    page.prefer("light")


SOON_GONE = """new Promise(done => {
  const began = Date.now();
  const look = () => {
    const gone = document.querySelectorAll('.pane.gone').length > 0;
    gone || Date.now() - began > 10_000 ? done(gone) : setTimeout(look, 50);
  };
  look();
})"""


def test_names_of_files_cannot_take_the_page_over(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    table = write_inspection(out, num_images=2, failed=[dict.fromkeys(FAILED[0], HOSTILE)])
    texts = dict.fromkeys(("key", "source", "kind", "group"), HOSTILE)
    rows = [row | texts for row in table.to_dict("records")]
    failed = [dict.fromkeys(FAILED[0], HOSTILE)]
    write_unit(out, "test-32-00000", [{str(k): v for k, v in row.items()} for row in rows], failed)
    build_report(out)
    with open_page((tmp_path / REPORT).as_uri(), tmp_path / "profile") as page:
        title = page.run("document.title")
        assert page.run(KEYS) == [HOSTILE, HOSTILE]
        page.run("openViewer()")
        assert page.run("document.getElementById('viewer-title').firstChild.data") == HOSTILE
        cells = "[...document.querySelectorAll('#failed-rows td')].map(cell => cell.textContent)"
        assert page.run(cells) == [HOSTILE] * 3
        assert page.run("document.title") == title
        assert page.run("document.querySelectorAll('[onerror]:not(script)').length") == 0
        # Its pictures have other names, so each pane says that they are missing.
        assert page.run(SOON_GONE)


def test_lost_data_files_are_noticed(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    write_inspection(out, num_images=2)
    out.delete(build_report(out).row_files[0])
    with open_page((tmp_path / REPORT).as_uri(), tmp_path / "profile") as page:
        assert page.run("document.getElementById('lost').checkVisibility()")


def test_errors_are_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<img src='gone.png'><script>throw Error('no')</script>", encoding="utf-8")
    with open_page(broken.as_uri(), tmp_path / "profile") as page:
        assert len(page.errors) == 2
