"""Work in threads: everything is told in the caller's thread, and nothing goes on after an error."""

import threading
from collections.abc import Iterator

import pytest

from edgekit.parallel import in_threads


def pairs(item: int) -> Iterator[tuple[int, str]]:
    yield item, "begun"
    yield item, "done"


@pytest.mark.parametrize("threads", [1, 3, 50, None])
def test_everything_is_told_once_in_the_callers_thread(threads: int | None) -> None:
    told: list[tuple[int, str]] = []
    where: set[int] = set()

    def tell(result: tuple[int, str]) -> None:
        told.append(result)
        where.add(threading.get_ident())

    in_threads(pairs, range(40), threads, tell)
    assert sorted(told) == sorted(pair for n in range(40) for pair in pairs(n))
    assert where == {threading.get_ident()}


def test_one_thread_keeps_the_order() -> None:
    told: list[tuple[int, str]] = []
    in_threads(pairs, range(9), 1, told.append)
    assert told == [pair for n in range(9) for pair in pairs(n)]


def test_no_items_no_threads() -> None:
    in_threads(pairs, [], 4, lambda result: pytest.fail("nothing to tell"))


def test_the_first_error_of_a_thread_ends_all() -> None:
    def work(item: int) -> Iterator[int]:
        if item == 3:
            raise ZeroDivisionError("three")
        yield item

    told: list[int] = []
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="three"):
        in_threads(work, range(1000), 1, told.append)
    assert told == [0, 1, 2]
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_of_the_caller_ends_all_threads(error: type[BaseException]) -> None:
    """Each item never ends of itself: only being stopped at a yield ends it."""

    def endless(item: int) -> Iterator[int]:
        while True:
            yield item

    def tell(item: int) -> None:
        raise error

    before = threading.active_count()
    with pytest.raises(error):
        in_threads(endless, range(5), 3, tell)
    assert threading.active_count() == before
