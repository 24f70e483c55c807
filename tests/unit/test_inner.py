"""When an inner process is started again, and when it is given up."""

from boiler.inner import BACKOFF, STARTED_WELL, Inner, State
from boiler.procfile import Entry


def dead_at(inner: Inner, started_at: float, now: float) -> None:
    inner.state, inner.started_at = State.RUNNING, started_at
    inner.died(1, now)


def test_a_process_that_ran_well_is_started_again_at_once() -> None:
    inner = Inner(Entry("web", "serve"), {})
    dead_at(inner, 0, STARTED_WELL + 1)
    assert (inner.state, inner.restart_at, inner.restarts) == (State.BACKOFF, STARTED_WELL + 1, 1)


def test_pauses_grow_while_starts_fail_and_then_it_is_given_up() -> None:
    inner = Inner(Entry("web", "serve"), {})
    now, pauses = 100.0, []
    while True:
        dead_at(inner, now, now + 0.1)
        if inner.given_up:
            break
        pauses.append(inner.restart_at - now - 0.1)
        now = inner.restart_at
    assert [round(pause, 6) for pause in pauses] == list(BACKOFF)


def test_a_start_that_went_well_ends_the_count() -> None:
    inner = Inner(Entry("web", "serve"), {})
    for _ in range(len(BACKOFF)):
        dead_at(inner, 0, 1)
    dead_at(inner, 0, STARTED_WELL)
    assert not inner.given_up
    assert inner.restart_at == STARTED_WELL


def test_what_was_asked_to_stop_is_not_started_again() -> None:
    inner = Inner(Entry("web", "serve"), {}, state=State.STOPPING, started_at=0)
    inner.died(0, 100)
    assert (inner.state, inner.next_time()) == (State.STOPPED, None)
