"""Every command in the documents is run, or at least parsed, by the real thing."""

import json
import re
import shlex
from pathlib import Path

import pytest

from cluster.cli import COMMANDS, parse
from tests.jobs import ROOT, run_cli

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "k8s/README.md", *ROOT.glob("docs/*.md")])
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"python -m cluster ([a-z]+)((?: [^`\n#\"]*)?)")
# Files that a reader has and a test has not.
_OF_THE_READER = re.compile(r"run\.yaml|/etc/blemish/run\.yaml|s3://.*/best\.yaml")


def _commands(document: Path) -> list[list[str]]:
    found = _COMMAND.findall(document.read_text())
    return [[name, *shlex.split(rest)] for name, rest in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_accepted_by_the_command_line(
    document: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "run.yaml").write_text("")
    for words in _commands(document):
        own = str(tmp_path / "run.yaml")
        words = [own if _OF_THE_READER.fullmatch(word) else word for word in words]
        if {"--help", "--print-config"} & set(words):
            with pytest.raises(SystemExit) as stop:
                parse(words)
            assert stop.value.code == 0
        else:
            name, _ = parse(words)
            assert name in COMMANDS


def test_documents_hold_every_command_that_make_does_not_run() -> None:
    assert {words[0] for d in DOCUMENTS for words in _commands(d)} >= set(COMMANDS) - {"demo"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_walk_through_of_operations_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = _BLOCK.findall((ROOT / "docs/operations.md").read_text())
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        python, module, package, *words = shlex.split(line)
        assert (python, module, package) == ("python", "-m", "cluster")
        # Ray's workers look for our packages in the working directory, which is another one here.
        status, output = run_cli(words, env={"PYTHONPATH": str(ROOT)})
        assert status == 0, output
        assert "FAIL" not in output
    inspection = tmp_path / "outputs/surfaces/inspection/test"
    assert 0 <= json.loads((inspection / "metrics.json").read_text())["auroc"] <= 1
    assert "<svg" in (inspection / "report.html").read_text()
