"""The shape of the repository: what lies where, what is pinned, what git must not hide."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cluster

ROOT = Path(__file__).parents[2]
PACKAGES = ("gan", "data", "cluster", "tune")
LAYOUT = {
    *PACKAGES,
    *("tests", "k8s", "docs", ".ci"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    *("pyproject.toml", "constraints.txt", "Makefile", ".gitignore"),
}
MAX_LINES = 350


def test_the_top_level_holds_what_the_readme_says_and_no_more() -> None:
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    present = {path.split("/")[0] for path in listed if (ROOT / path).exists()}
    assert present == LAYOUT


def test_git_ignores_no_source_file() -> None:
    sources = "\n".join(str(path.relative_to(ROOT)) for path in _sources())
    ignored = _git("check-ignore", "--no-index", "--stdin", stdin=sources).stdout
    assert ignored == "", "Ray would leave these files out of its upload"


def test_every_gitignore_pattern_is_anchored() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert [pattern for pattern in patterns if not pattern.startswith("/")] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_imported_from_this_tree(name: str) -> None:
    file = importlib.import_module(name).__file__
    assert file is not None
    assert Path(file).resolve().parent == ROOT / name


def test_no_python_file_is_too_long() -> None:
    num_lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _sources()
        if path.suffix == ".py"
    }
    assert {path: num for path, num in num_lines.items() if num > MAX_LINES} == {}


def test_every_direct_dependency_is_pinned() -> None:
    pins = _pins()
    assert pins["torch"] == "2.13.0"
    assert [name for name in _declared() if name not in pins] == []


def test_the_code_and_the_project_have_one_version() -> None:
    assert cluster.__version__ == _project()["version"]


def test_the_installed_versions_are_the_pinned_ones() -> None:
    pins = _pins()
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in _declared()}
    assert installed == {name: pins[name] for name in installed}


def test_every_third_party_import_is_declared() -> None:
    distributions = importlib.metadata.packages_distributions()
    known = set(_declared())
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in _sources()
        if path.suffix == ".py"
        for module in _imported(path) - set(sys.stdlib_module_names) - {*PACKAGES, "tests"}
        if not {canonicalize_name(name) for name in distributions.get(module, ())} & known
    }
    assert undeclared == set()


def _git(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so git cannot say which files it ignores")
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60
    )
    # `git check-ignore` exits with 1 when it finds nothing.
    assert done.returncode in (0, 1), done.stderr
    return done


def _sources() -> list[Path]:
    files = [
        path
        for folder in (*PACKAGES, "tests", "k8s", "docs", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.relative_to(ROOT).parts[0] for path in files} >= {*PACKAGES, "tests", "k8s"}
    return files


def _pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def _project() -> dict[str, Any]:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return cast("dict[str, Any]", tree["project"])


def _declared() -> list[str]:
    project = _project()
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [canonicalize_name(Requirement(each).name) for each in requirements]


def _imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.split(".")[0])
    return modules


@pytest.mark.parametrize("package", PACKAGES)
def test_the_readme_names_every_module(package: str) -> None:
    words = set((ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split())
    modules = {path.name for path in (ROOT / package).glob("[!_]*.py")}
    folders = {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
    assert not (modules | folders) - {word.strip(":,") for word in words}
