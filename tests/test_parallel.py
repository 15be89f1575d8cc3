"""What runs side by side gives what it would give one after another."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import scipy.linalg as sl

import onnxprune
from onnxprune import numerics, parallel
from onnxprune.numerics import lapack
from onnxprune.runtime import sessions


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: request.param)
    return request.param


def test_results_come_in_order(cores):
    def slow(k):
        time.sleep(0.002 * (k % 3))
        return k * k

    assert list(parallel.each(slow, range(20))) == [k * k for k in range(20)]


def test_no_more_at_a_time_than_there_is_room_for(cores, monkeypatch):
    running, most, lock = 0, 0, threading.Lock()

    def task(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.003)
        with lock:
            running -= 1

    monkeypatch.setattr(parallel, "_free_bytes", lambda: 3_999)
    list(parallel.each(task, range(12), holds=1_000))
    assert most <= min(cores, 3) and (cores == 1 or most > 1)


@pytest.mark.parametrize(("threads", "count"), [(None, 5), (1, 1), (2, 2), (9, 5)])
def test_threads_bound_the_workers(threads, count, monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 5)

    @parallel.within_threads
    def function(*, threads=None):
        return threads, parallel.workers()

    assert function(threads=threads) == (threads, count) and parallel.workers() == 5


@pytest.mark.parametrize(("threads", "share"), [(None, 2), (1, 1), (8, 2)])
def test_a_task_has_its_share_of_the_cores(threads, share, monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 4)
    monkeypatch.setattr(parallel, "_free_bytes", lambda: 2)
    inside = list(parallel.each(lambda _: (parallel.workers(), parallel.threads_here(threads)), range(6), holds=1))
    assert inside == [(2, share)] * 6
    assert parallel.workers() == 4 and parallel.threads_here(threads) == threads


@pytest.mark.parametrize("count", [4, 9, 40])
def test_tasks_of_tasks_do_not_wait_for_each_other(count, monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: count)

    monkeypatch.setattr(parallel, "_free_bytes", lambda: 10)

    def task(k):
        return sum(parallel.each(lambda j: sum(parallel.each(abs, range(j))), range(k), holds=5))

    expected = [sum(j * (j - 1) // 2 for j in range(k)) for k in range(60)]
    assert list(parallel.each(task, range(60), holds=20 // count)) == expected


def test_an_error_stops_the_rest(cores):
    begun = []

    def task(k):
        begun.append(k)
        time.sleep(0.01 if k == 0 else 0.05)
        if k == 0:
            raise ValueError("none")

    with pytest.raises(ValueError, match="none"):
        list(parallel.each(task, range(100)))
    at_once = len(begun)
    time.sleep(0.15)
    assert at_once <= cores + 1 and len(begun) <= cores, "what has not begun does not begin"
    assert list(parallel.each(abs, range(3))) == [0, 1, 2]


def test_tasks_that_nobody_waits_for_end_at_their_next_piece(monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    pieces = []

    def task(k):
        for _ in range(1000):
            parallel.pieces(lambda at: time.sleep(0.002), 1)
            pieces.append(k)

    results = parallel.each(lambda k: k if k == 0 else task(k), range(2))
    assert next(results) == 0
    results.close()
    time.sleep(0.05)
    done = len(pieces)
    time.sleep(0.05)
    assert len(pieces) == done < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_copy_of_the_process_has_workers_of_its_own(monkeypatch):
    """Those of the process that was copied are not in it: what is handed to them is never done."""
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    assert list(parallel.each(abs, range(4))) == [0, 1, 2, 3]
    pid = os.fork()
    if not pid:
        os._exit(7 if list(parallel.each(abs, range(4))) == [0, 1, 2, 3] else 1)
    until = time.monotonic() + 20
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 7


def test_items_are_made_when_there_is_room(cores, monkeypatch):
    """An item may hold as much as a task does."""
    monkeypatch.setattr(parallel, "_free_bytes", lambda: 2)
    alive, most, lock = 0, 0, threading.Lock()

    def items():
        nonlocal alive, most
        for k in range(12):
            with lock:
                alive += 1
                most = max(most, alive)
            yield k

    def task(k):
        nonlocal alive
        time.sleep(0.002)
        with lock:
            alive -= 1
        return k

    assert list(parallel.each(task, items(), holds=1)) == list(range(12))
    assert most <= min(cores, 2)


@pytest.mark.parametrize("rows", [3, 700, 4000])
@pytest.mark.parametrize("inputs", [1, 130, 700])
@pytest.mark.parametrize("outputs", [1, 40, 600])
def test_products_do_not_depend_on_the_workers(rows, inputs, outputs, monkeypatch):
    rng = np.random.default_rng(0)
    x, w, t = (rng.standard_normal(s).astype("f4") for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    found = []
    for count in (1, 3):
        monkeypatch.setattr(parallel, "_cores", lambda count=count: count)
        found.append([parallel.product(x, w), parallel.product(x.T, t), parallel.gram(x)])
    for one, three, exact in zip(*found, (x @ w, x.T @ t, x.T @ x), strict=True):
        assert np.array_equal(one, three)
        assert np.allclose(one, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    assert np.array_equal(found[0][2], found[0][2].T)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_lapack_without_the_lock(n):
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n))
    A = np.asfortranarray(A @ A.T + n * np.eye(n))
    B = np.asfortranarray(rng.standard_normal((n, 7)))
    L = A.copy("F")
    assert lapack.potrf(L) and np.allclose(np.tril(L), np.linalg.cholesky(A))
    V, X, Y = L.copy("F"), B.copy("F"), B.copy("F")
    lapack.potri(V)
    lapack.mirror(V)
    lapack.potrs(L, X)
    lapack.trsm(L, Y)
    assert np.allclose(V @ A, np.eye(n)) and np.allclose(A @ X, B)
    assert np.allclose(Y, sl.solve_triangular(L, B, lower=True))
    C = A.copy("F")
    lapack.syrk(np.asfortranarray(B.T), C)
    assert np.allclose(np.tril(C), np.tril(A - B @ B.T)) and np.array_equal(np.triu(C, 1), np.triu(A, 1))


def test_lapack_says_what_has_no_factor():
    assert not lapack.potrf(np.asfortranarray([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="positive definite"):
        numerics.inverse(np.array([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


F = np.asfortranarray


@pytest.mark.parametrize(
    ("function", "matrices"),
    [
        (lapack.potrf, [np.eye(3, dtype="f4")]),
        (lapack.potrf, [np.arange(6.0).reshape(2, 3)[:, ::2]]),
        (lapack.potrf, [F(np.ones((3, 2)))]),
        (lapack.potri, [F(np.ones((2, 3)))]),
        (lapack.mirror, [F(np.ones((2, 3)))]),
        (lapack.potrs, [F(np.eye(4)), F(np.ones((2, 1)))]),
        (lapack.potrs, [F(np.eye(4)), np.ones(4)]),
        (lapack.trsm, [F(np.eye(2)), F(np.ones((4, 1)))]),
        (lapack.syrk, [F(np.ones((2, 3))), F(np.ones((2, 2)))]),
    ],
)
def test_lapack_takes_nothing_that_it_would_read_wrongly(function, matrices):
    with pytest.raises((TypeError, ValueError), match=r"Fortran order|rows is wanted|rows are wanted"):
        function(*matrices)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    H, G = np.diag([2.0, 3.0, 4.0]), np.ones((3, 2))
    with pytest.raises(ValueError, match="finite"):
        numerics.Ridge(np.diag([bad, 3.0, 4.0]))
    with pytest.raises(ValueError, match="finite"):
        numerics.Ridge(H).solve(np.array([[bad, 1], [1, 1], [1, 1]]))
    with pytest.raises(ValueError, match="finite"):
        numerics.Reader(np.eye(2), np.array([[1, bad, 1], [1, 1, 1]]), np.arange(2)[:, None]).narrowed()
    with pytest.raises(ValueError, match="finite"):
        numerics.inverse(np.diag([bad, 3.0, 4.0]))
    with pytest.raises(ValueError, match="rows"):
        numerics.Ridge(H).solve(G[:2])


def test_elimination_where_a_reader_has_rows_out_of_order():
    """The lower triangle alone is kept up to date; which half an entry is in depends on the order of rows."""
    rng = np.random.default_rng(3)
    H = rng.standard_normal((40, 12))
    V, W = np.linalg.inv(H.T @ H), rng.standard_normal((12, 4))
    rows = rng.permutation(12).reshape(6, 2)
    order, errors = numerics.eliminate([numerics.Reader(V, W, rows)])
    at = rows.ravel()
    again, same = numerics.eliminate([numerics.Reader(V[np.ix_(at, at)], W[at], np.arange(12).reshape(6, 2))])
    assert np.array_equal(order, again) and np.allclose(errors, same)


@pytest.mark.slow
def test_the_same_bytes_however_many_workers(monkeypatch):
    """ONNX Runtime itself may sum in another order with more threads; it has one here."""
    monkeypatch.setattr(sessions, "threads_here", lambda threads: 1)
    found = []
    for count in (1, 2, 4):
        monkeypatch.setattr(parallel, "_cores", lambda count=count: count)
        how = {"calibration": "benchmarks/data/calib.npz", "samples": 64, "methods": ["channels", "blocks"]}
        found.append(onnxprune.prune("benchmarks/models/resnet20_fmnist.onnx", 0.5, **how).model.SerializeToString())
    assert found[0] == found[1] == found[2]


def test_free_memory_is_known_where_the_system_tells():
    assert 1 << 20 < parallel._free_bytes()


def test_blas_has_one_thread_while_it_computes_and_its_own_number_afterwards():
    from threadpoolctl import threadpool_info, threadpool_limits

    from onnxprune.parallel import one_blas_thread

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert set(one_blas_thread(threads)()) == {1}
        assert threads() == before
