"""What does not fit into a run's memory goes to files, and nothing else changes."""

import numpy as np
import pytest

import onnxprune
from onnxprune import parallel
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.measure.stepwise import Runner
from onnxprune.numerics import on_disk
from onnxprune.pipeline.options import size_of
from tests.channels.surgery import model_of

MIB = 1 << 20
NET = """(float[N,3,32,32] x) => (float[N,8] y) <float[16,3,3,3] a, float[16,16,3,3] b, float[16,16,3,3] c, float[16] bias, float[16,8] v>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Relu(h) j = Conv<pads=[1,1,1,1]>(i, b, bias) k = Relu(j)
      l = Conv<pads=[1,1,1,1]>(k, c) m = Add(l, i) n = Relu(m) o = GlobalAveragePool(n) p = Flatten(o) y = MatMul(p, v) }"""


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4gib", 4 << 30),
        ("512 MB", 512 * 10**6),
        ("1.5G", 1_500_000_000),
        ("300000000", 300_000_000),
    ],
)
def test_sizes(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 apples", "-4GB", "4GBB", "4xb"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="no size of memory"):
        size_of(text)


def test_the_room_is_what_is_left_of_the_budget(monkeypatch):
    monkeypatch.setattr(parallel, "_free_bytes", lambda: 1000 * MIB)
    monkeypatch.setattr(parallel, "_used", lambda: 100 * MIB)
    assert parallel.room() == 1000 * MIB
    with parallel.within(None):
        assert parallel.room() == 500 * MIB
    with parallel.within(300 * MIB):
        assert parallel.room() == 200 * MIB
        with parallel.within(None):
            assert parallel.room() == 200 * MIB
        monkeypatch.setattr(parallel, "_cores", lambda: 4)
        assert list(parallel.each(lambda _: parallel.room(), range(3), holds=60 * MIB)) == [200 * MIB // 3] * 3
        assert list(parallel.each(lambda _: parallel.room(), range(3))) == [200 * MIB] * 3
    with parallel.within(50 * MIB):
        assert parallel.room() == 0


def test_arrays_in_files_are_arrays():
    value = np.arange(6 * MIB, dtype=np.float32).reshape(2, 3, -1)
    with parallel.within(1):
        keeper = on_disk.Keeper()
        found = keeper.keep(value)
        assert isinstance(found, np.memmap) and np.array_equal(found, value)
        found[1] += 1
        on_disk.release((found, np.asarray(found)[0], 3))
        assert np.array_equal(found[1], value[1] + 1)
        assert isinstance(keeper.zeros((512, 512)), np.memmap) and not isinstance(keeper.zeros((3, 3)), np.memmap)
        assert not isinstance(keeper.keep(np.zeros(MIB, "O")), np.memmap)


def test_what_lies_between_pieces_goes_to_files():
    feeds = [{"x": np.random.default_rng(k).standard_normal((32, 3, 32, 32)).astype(np.float32)} for k in (0, 1)]
    graph = Graph(model_of(NET))
    with parallel.within(1):
        little = Runner(graph, on_disk.kept(feeds))
        assert all(isinstance(v, np.memmap) for v in little.until("k")) and little.held < MIB
    plenty = Runner(graph, feeds)
    assert (
        not any(isinstance(v, np.memmap) for v in plenty.until("k")) and plenty.held >= 2 * plenty.live["k"][0].nbytes
    )
    for runner in (little, plenty):
        runner.until("n")
        assert runner.held >= 0
    assert np.array_equal(little.outputs(), plenty.outputs())


@pytest.mark.parametrize("repair", ["merge", "statistics", "refit"])
def test_the_result_is_the_same_to_the_byte(repair, monkeypatch):
    x = np.random.default_rng(0).standard_normal((200, 3, 32, 32)).astype(np.float32)
    files = []
    for memory, room in ((None, 1 << 40), (1 << 28, 0)):
        monkeypatch.setattr(parallel, "_free_bytes", lambda room=room: room)
        result = onnxprune.prune(model_of(NET), 0.4, calibration=x, repair=repair, memory=memory, round_to=1)
        files.append(result.model.SerializeToString(deterministic=True))
    assert files[0] == files[1]


def test_what_was_changed_in_a_map_of_its_own_stays(tmp_path):
    """Of a private map (`mode="c"`) the changes lie in memory alone."""
    np.save(tmp_path / "a.npy", np.zeros(5000))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private += 1
    on_disk.release([private[10:]])
    assert (private == 1).all()
