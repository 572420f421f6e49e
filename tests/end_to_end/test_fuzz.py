"""Invalid input to a server: documented errors, no crash, and no effect on other sessions."""

import asyncio
from collections.abc import Iterator
import itertools

from helpers.fast_server import QuickServer, quick_server
from helpers.fuzz_inputs import every_wrong_field, huge_inputs, inputs
from helpers.fuzzer import feed
from helpers.neighbor import undisturbed
import pytest


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--memory", "2") as server:
        yield server


#: In addition to a thousand with one wrong field each. tests/soak has fifty times as many.
@pytest.mark.slow
@pytest.mark.parametrize(("count", "done"), [(200, 5), pytest.param(1000, 40, marks=pytest.mark.slow)])
def test_inputs_of_all_kinds(quick: QuickServer, count: int, done: int) -> None:
    with undisturbed(quick):
        seen = asyncio.run(feed(quick.address, itertools.islice(inputs(seed=1), count)))
    print(dict(seen.most_common()))
    # Not all inputs were refused by the handshake.
    assert seen["session goes on"] >= 0.3 * count
    assert seen["Done"] >= done
    assert seen["bad_message of a request"] + seen["out_of_memory of a request"] >= 0.15 * count


@pytest.mark.slow
def test_every_field_wrong(quick: QuickServer) -> None:
    with undisturbed(quick):
        seen = asyncio.run(feed(quick.address, every_wrong_field()))
    print(dict(seen.most_common()))


@pytest.mark.slow
def test_the_largest(quick: QuickServer) -> None:
    with undisturbed(quick):
        seen = asyncio.run(feed(quick.address, huge_inputs(), at_once=1))
    print(dict(seen.most_common()))
