"""The doorbell between the courier's thread and Celery's loop: no ring is lost, however the two meet."""

from __future__ import annotations

import os
import select

import pytest

from jobs.doorbell import Doorbell


def rings(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_it_rings_until_it_is_silenced() -> None:
    bell = Doorbell()
    bell.ring()
    bell.ring()
    assert rings(bell)
    bell.silence()
    assert not rings(bell)


@pytest.mark.parametrize("moment", ["before the read", "after the read"])
def test_a_ring_while_it_is_being_silenced_does_not_make_it_deaf(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Doorbell()
    bell.ring()
    read = os.read

    def read_and_be_rung(descriptor: int, size: int) -> bytes:
        if moment == "before the read":
            bell.ring()
        data = read(descriptor, size)
        if moment == "after the read":
            bell.ring()
        return data

    with monkeypatch.context() as meeting:
        meeting.setattr(os, "read", read_and_be_rung)
        bell.silence()
    bell.ring()
    assert rings(bell)
