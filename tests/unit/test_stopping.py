"""A stop asked for by a signal, and a failure that ends a run at once."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster import ray_session, stopping
from cluster.errors import UserError
from cluster.progress import FailureNotes, ProgressBoard
from cluster.ranks import Ranks
from cluster.stopping import StopFlag, stop_on_sigterm
from cluster.train import _cause
from data.errors import DataError


class LocalBoard:
    """A board in this process that is called the way an actor is."""

    def __init__(self) -> None:
        self.real = ProgressBoard()
        self.num_asked = 0
        self.answers: list[Future[bool]] = []

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self.real, name))

    @property
    def stopping(self) -> SimpleNamespace:
        def ask() -> SimpleNamespace:
            self.answers.append(Future())
            return SimpleNamespace(future=lambda: self.answers[-1])

        return SimpleNamespace(remote=ask)


@pytest.fixture
def flag(monkeypatch: pytest.MonkeyPatch) -> tuple[StopFlag, LocalBoard]:
    monkeypatch.setattr(stopping, "_POLL_S", 0.0)
    board = LocalBoard()
    return StopFlag(board, Ranks(0, 1), torch.device("cpu")), board


def test_flag_waits_for_no_answer_and_stays_up(flag: tuple[StopFlag, LocalBoard]) -> None:
    stop, board = flag
    assert not stop.is_up()
    assert not stop.is_up()
    assert len(board.answers) == 1, "asked again before the answer came"
    board.answers[0].set_result(False)
    assert not stop.is_up()
    assert not stop.is_up()
    board.answers[1].set_result(True)
    assert stop.is_up()
    assert stop.is_up()


def test_lost_board_does_not_end_a_run(flag: tuple[StopFlag, LocalBoard]) -> None:
    stop, board = flag
    stop.is_up()
    board.answers[0].set_exception(RuntimeError("the actor died"))
    assert not stop.is_up()


def test_other_ranks_do_not_ask() -> None:
    board = LocalBoard()
    StopFlag(board, Ranks(0, 1), torch.device("cpu")).is_up()
    assert len(board.answers) == 1
    flag = StopFlag(board, Ranks(1, 1), torch.device("cpu"))
    assert not flag.is_up()
    assert len(board.answers) == 1


def test_first_sigterm_is_passed_on_and_the_second_is_not() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        board = LocalBoard()
        with stop_on_sigterm(board) as asked:
            assert not asked.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.is_set()
            assert board.real.stopping()
            assert "asked to stop" in board.real.read()[3][0]
            assert got == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == [signal.SIGTERM]
    finally:
        assert signal.signal(signal.SIGTERM, before) is not before


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    failures: list[Exception] = []

    def use() -> None:
        try:
            with stop_on_sigterm(LocalBoard()) as asked:
                assert not asked.is_set()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []


def test_mistake_of_the_users_ends_a_run_where_ray_would_try_again() -> None:
    board = LocalBoard()
    notes = FailureNotes(board)
    notes.after_exception(None, {1: RuntimeError("first\nlast")})
    assert board.real.read()[3] == ["worker 1 failed: last"]
    notes.after_exception(None, {0: DataError("the store did not answer")})
    with pytest.raises(UserError, match="lower it"):
        notes.after_exception(None, {0: RuntimeError("x"), 1: UserError("lower it")})


def test_a_full_gpu_is_told_and_not_tried_again() -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 ...")
    told = r"GPU of worker 1 is full \(CUDA out of memory.* GiB\.\); lower cluster\.images_per_pass"
    with pytest.raises(UserError, match=told):
        FailureNotes(LocalBoard()).after_exception(None, {1: full})


@pytest.mark.parametrize(
    "failure",
    [
        WorkerGroupError("two", {0: RuntimeError("x"), 1: UserError("lower it")}),
        ControllerError(UserError("lower it")),
    ],
)
def test_cause_is_what_a_person_can_act_on(failure: WorkerGroupError | ControllerError) -> None:
    assert str(_cause(failure)) == "lower it"


@pytest.mark.parametrize(
    "failure",
    [
        WorkerGroupError("two", {1: RuntimeError("Traceback:\n  ...\nconnection reset")}),
        ControllerError(RuntimeError("Traceback:\n  ...\nconnection reset")),
    ],
)
def test_any_other_failure_is_one_line(failure: WorkerGroupError | ControllerError) -> None:
    told = _cause(failure)
    assert isinstance(told, UserError)
    assert "at last with RuntimeError: connection reset; mend" in str(told)
    assert "\n" not in str(told)


def test_sigterm_ends_a_session_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**settings: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session.ray, "init", start)
    monkeypatch.setattr(ray_session.ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)

    def told_to_stop() -> None:
        with ray_session.ray_session(1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    try:
        with pytest.raises(KeyboardInterrupt):
            told_to_stop()
    finally:
        signal.signal(signal.SIGTERM, before)
