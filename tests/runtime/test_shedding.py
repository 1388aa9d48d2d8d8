"""What a worker does on the agent's word to take less of the board, and the checkup that goes on all the same."""

import os
import threading

import pytest

from edgeops_runtime.serving.budget import ThreadBudget
from edgeops_runtime.serving.checkup import PATH, Checkup
from edgeops_runtime.serving.http import Request, Response
from edgeops_runtime.serving.model import load
from edgeops_runtime.serving.priority import Cores, yield_to_others
from edgeops_runtime.serving.repository import Served
from edgeops_runtime.serving.shedding import Shedder


def request(method: bytes = b"POST", path: bytes = b"/v2/models/m/infer") -> Request:
    return Request(method=method, path=path, headers={}, body=b"", keep_alive=True)


@pytest.mark.parametrize(("share", "answered"), [(0.0, 100), (0.25, 75), (0.5, 50), (1.0, 0)])
def test_a_share_is_turned_away_evenly(share, answered):
    shedder = Shedder(lambda _: Response(200))
    shedder.share = share
    statuses = [shedder(request()).status for _ in range(100)]
    assert statuses.count(200) == answered
    assert set(statuses) <= {200, 503}
    if share == 0.5:
        assert statuses[:4] == [200, 503, 200, 503]


def test_who_is_turned_away_is_told_when_to_come_again_and_questions_are_answered():
    shedder = Shedder(lambda _: Response(200))
    shedder.share = 1.0
    assert dict(shedder(request()).headers)["Retry-After"] == "2"
    assert shedder(request(method=b"GET", path=b"/v2/health/ready")).status == 200
    assert shedder(request(path=b"/v1/models/m:predict")).status == 503
    assert shedder(request(path=b"/v2/systemsharedmemory/region/r/register")).status == 200


def test_a_checkup_waits_for_its_turn_so_that_lanes_which_hang_are_found(make_bundle):
    budget = ThreadBudget(1)
    with load(make_bundle("1.0.0").path) as model:
        checkup = Checkup(Served(model.loaded, budget=budget), lambda _: Response(404), patience_s=0.05)
        asked = request(method=b"GET", path=PATH)
        assert checkup(asked).status == 200
        assert budget.enter()
        assert checkup(asked).status == 503
        budget.leave()
        assert checkup(asked).status == 200
        assert checkup(request()).status == 404
        assert model.window().requests == 0


def on_a_thread(what):
    found = []
    thread = threading.Thread(target=lambda: found.append(what()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_yields_and_the_others_do_not():
    def yielded():
        return yield_to_others(), os.sched_getscheduler(0)

    how, policy = on_a_thread(yielded)
    assert (how, policy) == ("idle", os.SCHED_IDLE)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_idle_is_refused_it_is_nice_and_where_that_is_too_it_is_told(monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    found = on_a_thread(lambda: (yield_to_others(), os.getpriority(os.PRIO_PROCESS, 0)))
    assert found == ("nice", 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
    monkeypatch.setattr(os, "setpriority", refuse)
    assert on_a_thread(yield_to_others) == "normal"
    assert "normal priority" in caplog.text


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core only")
def test_fewer_cores_hold_for_every_thread_and_all_come_back():
    before = os.sched_getaffinity(0)
    asked, told = threading.Event(), threading.Event()
    seen = []

    def other():
        asked.wait(20)
        seen.append(len(os.sched_getaffinity(0)))
        told.set()

    thread = threading.Thread(target=other)
    thread.start()
    cores = Cores()
    try:
        assert cores.limit(1) == 1
        asked.set()
        assert told.wait(20)
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        assert cores.limit(None) == len(before)
        asked.set()
        thread.join()
    assert seen == [1]
    assert os.sched_getaffinity(0) == before
