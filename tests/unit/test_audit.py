"""What an audit makes of scores: ranking, hidden truth, advice, and the page."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest

from cluster.audit import _log, _write, score_splits, with_evidence
from cluster.audit_page import render
from cluster.config import Config, ObjectiveConfig, load_config
from cluster.errors import UserError
from cluster.findings import Findings, advice, find, headline, recommended_weights
from cluster.inspection_files import read_scores
from cluster.suspects import COLUMNS, Truth, hidden_truth, judge, rank_suspects, to_csv
from data.dataset import DatasetIndex
from data.store import Store
from gan.contamination import Contamination
from gan.evidence import term_names
from gan.fusion import Fusion
from tests.inspection_fixture import write_inspection

TOLD = Contamination(estimate=0.2, low=0.15, high=0.24, at_least=0.1)
UNTOLD = Contamination(estimate=None, low=0.07, high=1.0, at_least=0.07)


def _found(
    contamination: Contamination = TOLD, *, num_known: int = 50, truth: Truth | None = None
) -> Findings:
    return Findings(
        num_training=350,
        num_normal=80,
        num_known=num_known,
        contamination=contamination,
        weights=recommended_weights(contamination),
        truth=truth,
    )


def _index(contamination: float | None) -> DatasetIndex:
    return DatasetIndex(
        name="set",
        channels=1,
        resolution=32,
        resolutions=(32,),
        shards=(),
        labels={},
        kinds={},
        seed=0,
        contamination=contamination,
    )


def _table(scores: list[float], kinds: list[str] | None = None) -> pd.DataFrame:
    keys = [f"key-{i}" for i in range(len(scores))]
    table = pd.DataFrame({"key": keys, "score": scores, "source": keys, "group": keys})
    return table.assign(kind=kinds or "good", label="normal", evidence=scores)


def test_audit_without_validation_images_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no validation images, with whose scores an audit"):
        score_splits(load_config(None, {}), _index(None), MagicMock())


def test_most_suspicious_comes_first_and_equals_by_key() -> None:
    suspects = rank_suspects(_table([0.2, 0.9, 0.5, 0.9])[::-1], pd.Series([0.1, 0.5, 0.6]))
    assert suspects["key"].tolist() == ["key-1", "key-3", "key-2", "key-0"]
    assert suspects["rank"].tolist() == [1, 2, 3, 4]
    assert suspects["p_value"].tolist() == [1 / 4, 1 / 4, 3 / 4, 3 / 4]


def test_list_has_its_columns_and_every_image() -> None:
    suspects = rank_suspects(_table([0.2, 0.9]), pd.Series([0.1]))
    suspects.loc[0, "source"] = 'a "b", c.png'
    read = pd.read_csv(io.BytesIO(to_csv(suspects)))
    assert tuple(read.columns) == COLUMNS
    assert read["source"].tolist() == ['a "b", c.png', "key-0"]


VALIDATION = pd.DataFrame({"label": ["normal", "abnormal"], "kind": ["good", "pit"]})


def test_truth_is_the_kinds_that_are_not_normal() -> None:
    suspects = _table([4, 3, 2, 1], ["pit", "good", "scratch", "good"])
    mixed_in = hidden_truth(_index(0.5), suspects, VALIDATION)
    assert mixed_in is not None
    assert mixed_in.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("told", "kinds"),
    [(None, ["pit", "good"]), (0.0, ["good", "good"]), (0.75, ["pit", "good"])],
    ids=["not a study", "a clean study", "kinds do not tell"],
)
def test_no_truth_is_made_up(told: float | None, kinds: list[str]) -> None:
    assert hidden_truth(_index(told), _table([2, 1], kinds), VALIDATION) is None


def test_precision_at_c_counts_as_many_images_as_were_mixed_in() -> None:
    mixed_in = pd.Series([True, False, True, False, True, False, False, False])
    assert judge(mixed_in) == Truth(contamination=3 / 8, precision=2 / 3)


@pytest.mark.parametrize(
    ("estimate", "gamma", "alpha"), [(0.2, 0.7, 1.0), (0.0, 1.0, 1.0), (0.45, 0.5, 2.25)]
)
def test_weights_cover_any_contamination_below_a_half(
    estimate: float, gamma: float, alpha: float
) -> None:
    told = Contamination(estimate=estimate, low=0.0, high=0.49, at_least=0.0)
    weights = recommended_weights(told)
    assert weights == pytest.approx((gamma, alpha))
    assert weights[1] / sum(weights) >= told.high


@pytest.mark.parametrize("estimate", [None, 0.5, 0.9])
def test_no_weights_where_none_help(estimate: float | None) -> None:
    told = Contamination(estimate=estimate, low=0.0, high=1.0, at_least=0.0)
    assert recommended_weights(told) is None


def test_weights_that_do_not_cover_the_estimate_are_told_with_better_ones() -> None:
    plain = advice(_found(), ObjectiveConfig(gamma=1.0, alpha=0.0))
    assert "do not cover" in plain
    assert "--objective.gamma 0.7 --objective.alpha 1" in plain
    assert "first 84 suspects" in plain
    enough = advice(_found(), ObjectiveConfig(gamma=0.7, alpha=0.3))
    assert "of this run cover that" in enough
    assert "--objective" not in enough


def test_words_say_why_there_is_no_estimate() -> None:
    objective = ObjectiveConfig()
    assert "20.0% of the 350" in headline(_found())
    unlike, unknown = _found(UNTOLD), _found(UNTOLD, num_known=0)
    assert "At least 7.0%" in headline(unlike)
    assert "do not stand apart" in headline(unlike)
    assert "6 or more, there are 0" in headline(unknown)
    assert "6 or more, there is 1" in headline(_found(UNTOLD, num_known=1))
    assert advice(_found(UNTOLD, num_known=5), objective) == advice(unknown, objective)
    assert advice(unlike, objective).startswith("Train longer")
    assert advice(unknown, objective).startswith("Look at the first suspects")
    half = _found(Contamination(estimate=0.6, low=0.5, high=0.7, at_least=0.3))
    assert "no gamma and alpha help" in advice(half, objective)


def test_findings_of_scores() -> None:
    rng = np.random.default_rng(0)
    suspects = _table([*rng.normal(4, 1, 70), *rng.normal(0, 1, 280)])
    normal, known = _table(rng.normal(0, 1, 80).tolist()), _table(rng.normal(4, 1, 50).tolist())
    mixed_in = pd.Series([True] * 70 + [False] * 280)
    summary = find(suspects, normal, known, mixed_in, seed=0).to_dict()
    assert summary["estimate"] == pytest.approx(0.2, abs=0.06)
    assert summary["gamma"] == pytest.approx(1 - 1.5 * summary["estimate"], abs=1e-3)
    assert summary["alpha"] == 1.0
    assert (summary["true_contamination"], summary["precision_at_c"]) == (0.2, 1.0)
    json.dumps(summary, allow_nan=False)
    untold = find(suspects, normal, known[:0], None, seed=0)
    assert untold.to_dict()["gamma"] is None
    assert set(untold.numbers()).isdisjoint({"gamma", "alpha", "estimate", "precision_at_c"})


def test_contamination_is_told_without_what_d_learned_of_its_training_images() -> None:
    """D has called hidden defects real and known ones fake: its logit sets them apart."""
    rng = np.random.default_rng(0)
    maps = ("residual", "logit")
    place = term_names(maps).index
    sets = {"hidden": (70, 4, -2), "good": (280, 0, 0), "normal": (80, 0, 0), "known": (50, 4, 6)}
    terms = {}
    for name, (num, residual, logit) in sets.items():
        terms[name] = rng.normal(0, 1, (num, 1, len(term_names(maps))))
        terms[name][:, 0, place("residual/mean")] += residual
        terms[name][:, 0, place("logit/mean")] += logit
    fusion = Fusion(
        names=term_names(maps),
        centre=(0.0,) * len(term_names(maps)),
        spread=(1.0,) * len(term_names(maps)),
        weight=tuple(float(name.endswith("/mean")) for name in term_names(maps)),
    )

    def scored(*names: str) -> pd.DataFrame:
        rows = np.concatenate([terms[name] for name in names])
        table = _table(fusion.image_scores(list(rows)).tolist()).assign(terms=list(rows))
        return with_evidence(table, fusion)

    suspects = rank_suspects(scored("hidden", "good"), scored("normal")["score"])
    found = find(suspects, scored("normal"), scored("known"), None, seed=0)
    assert found.contamination.estimate == pytest.approx(0.2, abs=0.05)
    blind = suspects.assign(evidence=suspects["score"])
    normal, known = (scored(name) for name in ("normal", "known"))
    tables = [table.assign(evidence=table["score"]) for table in (normal, known)]
    with_logit = find(blind, *tables, None, seed=0).contamination.estimate
    assert with_logit is not None
    assert with_logit < 0.1, "the logit would not mislead in this set"


def test_score_that_is_not_fused_is_the_evidence() -> None:
    table = _table([0.1, 0.5]).drop(columns="evidence")
    assert with_evidence(table, None)["evidence"].tolist() == [0.1, 0.5]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {"run.dir": str(tmp_path / "run"), "audit.num_shown": 5})


@pytest.fixture
def tables(config: Config) -> dict[str, pd.DataFrame]:
    out = Store(config.run.dir).child("audit", "train-normal")
    write_inspection(out, num_images=12)
    scored = read_scores(out)
    normal = scored[scored["label"] == "normal"]
    known = scored[scored["label"] == "abnormal"]
    suspects = rank_suspects(scored, normal["score"])
    return {"training": suspects, "normal": normal, "known abnormal": known}


def test_page_shows_the_most_suspicious_with_pictures_that_exist(
    config: Config, tables: dict[str, pd.DataFrame]
) -> None:
    page = render(config, _found(), tables, mixed_in=None, num_failed=2)
    shown = re.findall(r"<h3>\d+\. (\S+)", page)
    assert shown == tables["training"]["key"].tolist()[:5]
    links = set(re.findall(r'(?:src|href)="(train-normal/[^"]+)"', page))
    audit = Store(config.run.dir).child("audit")
    assert len(links) == 5 * 3
    assert all(audit.exists(link) for link in links)
    others = set(re.findall(r'(?:src|href)="([^#"][^"]*)"', page)) - links
    assert others == {"data:,", "suspects.csv"}


def test_page_tells_estimate_weights_and_charts(
    config: Config, tables: dict[str, pd.DataFrame]
) -> None:
    page = render(config, _found(), tables, mixed_in=None, num_failed=2)
    assert "15.0–24.0&nbsp;%" in page
    assert "γ&nbsp;0.7 α&nbsp;1" in page
    for legend in ("training (12)", "normal (8)", "known abnormal (4)"):
        assert legend in page
    assert "could not be scored" in page
    assert "mixed in" not in page
    assert "precision at c" not in page


def test_page_of_a_study_marks_what_was_mixed_in(
    config: Config, tables: dict[str, pd.DataFrame]
) -> None:
    mixed_in = pd.Series([True, False, True] + [False] * 9)
    found = _found(truth=judge(mixed_in))
    page = render(config, found, tables, mixed_in=mixed_in, num_failed=0)
    assert page.count("mixed in: ") == 2
    assert "0.500" in page
    assert "could not be scored" not in page


def test_page_without_known_abnormal_images_has_no_estimate(
    config: Config, tables: dict[str, pd.DataFrame]
) -> None:
    tables["known abnormal"] = tables["known abnormal"][:0]
    tables["training"].loc[0, "source"] = "<script>alert(1)</script>"
    page = render(config, _found(UNTOLD, num_known=0), tables, mixed_in=None, num_failed=0)
    assert "7.0 %" in page
    assert "recommended" not in page
    assert "known abnormal (" not in page
    assert "<script>alert" not in page


def test_pictures_of_an_audit_go_to_mlflow_one_by_one_where_they_are_there(
    config: Config, tables: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Store(config.run.dir).child("audit")
    page = render(config, _found(), tables, mixed_in=None, num_failed=0)
    _write(out, _found(), tables["training"], page)
    shown = sorted(set(re.findall(r'src="(train-normal/maps/[^"]+)"', page)))
    out.delete(shown[0])
    read: list[str] = []
    real = Store.read_bytes
    monkeypatch.setattr(
        Store, "read_bytes", lambda self, path: (read.append(path), real(self, path))[1]
    )
    sent: list[Mapping[str, bytes]] = []
    monkeypatch.setattr("cluster.audit.log_results", lambda *job: sent.append(job[2]))
    _log(config, out, _found(), page)
    assert not read
    assert {name.removeprefix("audit/") for name in sent[0]} == {
        "suspects.csv",
        "audit.html",
        "audit.json",
        *shown[1:],
    }
    assert sent[0]["audit/audit.html"] == page.encode()
