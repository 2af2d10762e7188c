"""Every relative link and picture in the documents leads to a file of this repository."""

import re
from pathlib import Path

import pytest

from tests.jobs import ROOT

DOCUMENTS = sorted(p for folder in (".", "docs", "k8s") for p in (ROOT / folder).glob("*.md"))
_TARGET = re.compile(
    r'\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)="([^"]+)"', re.MULTILINE
)
_NOT_A_FILE = re.compile(r"[a-z][a-z0-9+.-]*:|#")


def _broken(document: Path, root: Path) -> list[str]:
    """Targets that lead nowhere, or out of the repository that others clone."""
    targets = ["".join(groups) for groups in _TARGET.findall(document.read_text())]
    files = [target.partition("#")[0] for target in targets if not _NOT_A_FILE.match(target)]
    places = [(document.parent / file).resolve() for file in files]
    return [
        file
        for file, place in zip(files, places, strict=True)
        if not (place.exists() and place.is_relative_to(root))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    assert _broken(document, ROOT) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "outside.md").touch()
    (tmp_path / "docs/here.md").touch()
    document = tmp_path / "docs/page.md"
    document.write_text(
        "[a](here.md) [b](here.md#part) [c](https://x.org/gone.md) [d](#part) [e](../outside.md)\n"
        '![f](gone.png) [g](gone.md#part "title") <img src="gone.svg">\n[h]: gone.txt\n'
    )
    gone = ["gone.png", "gone.md", "gone.svg", "gone.txt"]
    assert _broken(document, tmp_path) == gone
    assert _broken(document, tmp_path / "docs") == ["../outside.md", *gone]
