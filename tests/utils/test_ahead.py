"""Results in order, computed ahead by several threads."""

import threading
from collections.abc import Iterator

import pytest

from worldstereo_ros.utils.ahead import compute_ahead


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(threads: int, count: int) -> None:
    given: list[int] = []

    def square(item: int, own_threads: int) -> int:
        given.append(own_threads)
        return item * item

    assert list(compute_ahead(square, range(count), threads)) == [item * item for item in range(count)]
    assert given[:1] == [threads] * min(count, 1)
    assert set(given[1:]) <= {1}


def test_one_thread_computes_what_is_asked_for() -> None:
    done: list[int] = []
    results = compute_ahead(lambda item, _: done.append(item), range(5), 1)
    next(results)
    next(results)
    assert done == [0, 1]


def test_items_are_taken_in_the_calling_thread_and_not_far_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            assert threading.current_thread() is threading.main_thread()
            taken.append(item)
            yield item

    results = compute_ahead(lambda item, _: item, items(), 3)
    assert next(results) == 0
    assert taken == [0]
    assert next(results) == 1
    assert len(taken) <= 4
    before = threading.active_count()
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before


def test_errors_come_after_the_results_before_them() -> None:
    def fail_at_three(item: int, _: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = compute_ahead(fail_at_three, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)

    def items() -> Iterator[int]:
        yield from (0, 1)
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        list(compute_ahead(lambda item, _: item, items(), 2))
