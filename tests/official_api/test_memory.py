"""The memory budget."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
import pytest

from nninteractive_ws.errors import OutOfMemory, TooLarge
from nninteractive_ws.official_api.memory import MemoryBudget


def test_more_than_all_of_it_is_too_large() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(TooLarge, match=r"needs 0.10 kB, and this server has 0.10 kB"):
        budget.reserve(101)
    assert budget.used == 0


def test_more_than_is_left_is_refused_for_now() -> None:
    budget = MemoryBudget(100)
    first = budget.reserve(60)
    with pytest.raises(OutOfMemory, match="Try again"):
        budget.reserve(41)
    assert budget.used == 60
    first.release()
    budget.reserve(41)
    assert budget.used == 41


def test_a_reservation_is_released_once() -> None:
    budget = MemoryBudget(100)
    budget.reserve(10)
    reservation = budget.reserve(20)
    reservation.release()
    reservation.release()
    assert budget.used == 10


def test_a_reservation_grows_within_the_budget() -> None:
    budget = MemoryBudget(100)
    other = budget.reserve(50)
    with budget.reserve(0) as reservation:
        reservation.grow(20)
        reservation.grow(30)
        assert (reservation.nbytes, budget.used) == (50, 100)
        with pytest.raises(OutOfMemory):
            reservation.grow(1)
        assert (reservation.nbytes, budget.used) == (50, 100)
    assert budget.used == other.nbytes == 50


def test_a_reservation_is_released_after_an_error() -> None:
    budget = MemoryBudget(100)
    with suppress(ZeroDivisionError), budget.reserve(100):
        assert budget.used == 100
        raise ZeroDivisionError
    assert budget.used == 0


@given(st.lists(st.integers(0, 60)))
def test_the_sum_is_never_above_the_limit(sizes: list[int]) -> None:
    budget, held = MemoryBudget(100), []
    for n, size in enumerate(sizes):
        try:
            held.append((budget.reserve(size), size))
        except OutOfMemory:
            assert sum(bytes_held for _, bytes_held in held) + size > 100
        if held and n % 3 == 2:
            held.pop(0)[0].release()
        assert budget.used == sum(bytes_held for _, bytes_held in held) <= 100
    for reservation, _ in held:
        reservation.release()
    assert budget.used == 0
