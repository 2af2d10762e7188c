"""Checkpoints in a bucket: kept, deleted and refused as on a disk."""

import pytest

from cluster.checkpoint_store import CheckpointStore, checkpoint_name, last_metrics
from data.store import Store
from tests.s3_server import BUCKET, moto_s3


def test_checkpoints_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_s3() as env:
        for variable, value in env.items():
            monkeypatch.setenv(variable, value)
        run = Store(f"s3://{BUCKET}/run")
        checkpoints = CheckpointStore(run, keep=2, identity={"seed": 0})
        names = [checkpoint_name(num_cuts=0, images_seen=n) for n in (400, 800, 1200)]
        assert checkpoints.newest(pytest.fail) is None
        for number, name in enumerate(names):
            files = {"state.pt": checkpoints.write(name, "state.pt", b"weights" * 99)}
            about = {"images_seen": number, "world_size": 1, "metrics": {"auroc": 0.1 * number}}
            checkpoints.finish(name, files, **about)
        assert checkpoints.names() == names[1:]
        assert run.list(f"checkpoints/{names[0]}/") == []
        assert last_metrics(run) == {"auroc": 0.2}
        assert checkpoints.read(names[2], "state.pt") == b"weights" * 99
        run.write_bytes(f"checkpoints/{names[2]}/state.pt", b"weights")
        notes: list[str] = []
        found = checkpoints.newest(notes.append)
        assert found is not None
        assert found[0] == names[1]
        assert "state.pt has 7 bytes, not 693" in notes[0]
        run.delete_folder("checkpoints")
        run.delete_folder("checkpoints")
        assert checkpoints.names() == []
