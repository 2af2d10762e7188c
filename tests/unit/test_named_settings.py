"""Every setting that a document or a message names is one that a job can be told."""

import ast
import re
from pathlib import Path

from cluster.config import Config
from tests.jobs import ROOT

_PATTERNS = ("*.md", "docs/*.md", "k8s/**/*.md", "k8s/**/*.yaml")
DOCUMENTS = [path for pattern in _PATTERNS for path in ROOT.glob(pattern)]
MODULES = [
    p for folder in ("cluster", "data", "gan", "tune") for p in ROOT.glob(f"{folder}/**/*.py")
]
FIELDS = {name: type(section).model_fields for name, section in Config()}
_NAMED = re.compile(rf"(?<![\w./])({'|'.join(FIELDS)})\.([a-z][a-z0-9_]*)")
_ENDINGS = ("html", "json", "py", "safetensors", "yaml")


def _texts(path: Path) -> list[str]:
    """A document, or what a module says: its strings and docstrings."""
    if path.suffix != ".py":
        return [path.read_text()]
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _unknown(path: Path) -> list[str]:
    """Names like run.dirs: the section exists, and neither the setting, a module nor a file."""
    return [
        f"{section}.{name}"
        for text in _texts(path)
        for section, name in _NAMED.findall(text)
        if name not in FIELDS[section]
        and name not in _ENDINGS
        and not (ROOT / section / f"{name}.py").exists()
    ]


def test_named_settings_exist() -> None:
    found = {str(path): _unknown(path) for path in (*DOCUMENTS, *MODULES)}
    assert {path: names for path, names in found.items() if names} == {}


def test_unknown_settings_are_found(tmp_path: Path) -> None:
    document, module = tmp_path / "page.md", tmp_path / "module.py"
    document.write_text(
        "`run.dirs` --data.uri --search.step=3 run.yaml data.plan cluster.train.py x/run.log"
    )
    module.write_text('"""Of tune.trials."""\nx = f"lower {run.size} or cluster.workers={1}"\n')
    assert _unknown(document) == ["run.dirs", "search.step"]
    assert _unknown(module) == ["tune.trials", "cluster.workers"]
