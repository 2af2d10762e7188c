"""How many actors of an inspection there is room for."""

from typing import Any

import pytest

from cluster import inspect_plan, inspection
from cluster.config import load_config
from cluster.errors import UserError
from cluster.inspect_plan import fitting_actors
from cluster.progress import progress_bar

HEAD, WORKER = {"CPU": 1.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, two workers and one that is gone."""
    alive = [(HEAD, True), (WORKER, True), (WORKER, True), (WORKER, False)]
    told = [{"Resources": have, "Alive": lives} for have, lives in alive]
    monkeypatch.setattr(inspect_plan.ray, "nodes", lambda: told)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0, 9), (3, 0, 2), (4, 0, 2), (1, 0.5, 4), (3, 0.5, 2)]
)
def test_an_actor_lies_on_one_node(cpus: float, gpus: float, room: int) -> None:
    chosen: dict[str, Any] = {"cluster.cpus_per_worker": cpus, "cluster.gpus_per_worker": gpus}
    assert fitting_actors(load_config(None, chosen)) == room


@pytest.mark.usefixtures("nodes")
def test_what_no_node_has_is_told_with_what_they_have() -> None:
    with pytest.raises(UserError) as caught:
        fitting_actors(load_config(None, {"cluster.cpus_per_worker": 5}))
    assert str(caught.value) == (
        "an inspection actor needs 5 CPU and 0 GPU, the cluster's nodes have 1 CPU and 0 GPU, or "
        "4 CPU and 1 GPU; lower cluster.cpus_per_worker or cluster.gpus_per_worker"
    )


@pytest.mark.usefixtures("nodes")
def test_missing_nodes_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    config, told = load_config(None, {}), set[int]()
    with progress_bar("inspect", total=1, unit="image") as bar:
        for num_actors in (9, 10, 10):
            inspection._tell_of_missing_nodes(num_actors, config, bar, told)
    said = capsys.readouterr().err
    assert said.count("nodes are missing: 10 actors inspect, the cluster has room for 9") == 1
    assert said.count("nodes are missing") == 1
