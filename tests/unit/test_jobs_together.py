"""Calls carried out as one: who shares a call, who gets which result, and whose error it is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.together import Together
from tests.wait import wait_for


class Kitchen:
    """Carries out orders when it is told to; `batches` has what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Semaphore(0)

    def cook(self, orders: list[int]) -> list[int]:
        self.batches.append(orders)
        assert self.open.acquire(timeout=30)
        if 13 in orders:
            raise ValueError("13")
        return [10 * order for order in orders]


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


def test_those_who_come_while_a_call_is_under_way_share_the_next(kitchen):
    together = Together(kitchen.cook)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together, 1)
        wait_for(lambda: kitchen.batches, "the first is under way")
        others = [pool.submit(together, number) for number in (2, 3, 4)]
        wait_for(lambda: len(together._waiting) == 3, "the others wait")
        kitchen.open.release()
        wait_for(lambda: len(kitchen.batches) == 2, "the others are under way")
        kitchen.open.release()
        assert [call.result(30) for call in (first, *others)] == [10, 20, 30, 40]
    assert [sorted(batch) for batch in kitchen.batches] == [[1], [2, 3, 4]]


def test_an_error_is_raised_to_all_who_shared_the_call_and_to_nobody_after(kitchen):
    together = Together(kitchen.cook)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together, 1)
        wait_for(lambda: kitchen.batches, "the first is under way")
        others = [pool.submit(together, number) for number in (12, 13)]
        wait_for(lambda: len(together._waiting) == 2, "the others wait")
        kitchen.open.release(2)
        assert first.result(30) == 10
        for call in others:
            with pytest.raises(ValueError, match="13"):
                call.result(30)
        kitchen.open.release()
        assert pool.submit(together, 14).result(30) == 140
