"""Small models are worked on by one thread; large ones by as many as NumPy's library takes."""

from __future__ import annotations

from threadpoolctl import threadpool_info, threadpool_limits

from graphprune.threads import SMALL, fitting


def threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_small_models_take_one_thread_and_give_the_others_back() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with fitting(SMALL - 1):
            assert threads() <= {1}
        assert threads() == before
        with fitting(SMALL):
            assert threads() == before
