"""Reading ahead, and who computes which shard."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest

from spot_hf.data.batches import Plan, Shards, _read_ahead


def reading(rows, size):
    """What is read ahead, and the thread that reads it."""
    before = set(threading.enumerate())
    ahead = _read_ahead(rows, size)
    first = next(ahead)
    (thread,) = set(threading.enumerate()) - before
    return ahead, first, thread


def test_all_rows_come_in_their_order():
    assert list(_read_ahead(range(1000), 3)) == list(range(1000))
    assert list(_read_ahead([], 3)) == []


def test_it_reads_before_it_is_asked():
    taken = []
    ahead, first, _ = reading((taken.append(i) or i for i in range(100)), 5)
    deadline = time.monotonic() + 30
    while len(taken) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    # One was given out, five wait, and one is in the reader's hands.
    assert first == 0 and len(taken) == 7
    ahead.close()


@pytest.mark.parametrize("ends_by", ["close", "error", "garbage"])
def test_the_reader_ends_with_whoever_reads(ends_by):
    """While the queue is full: nobody will take anything from it any more."""
    ahead, _, thread = reading(itertools.count(), 2)
    time.sleep(0.1)  # it is full by now
    if ends_by == "close":
        ahead.close()
    elif ends_by == "error":
        with pytest.raises(RuntimeError):
            ahead.throw(RuntimeError("the consumer's"))
    del ahead
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_an_error_of_the_source_arrives():
    def rows():
        yield 1
        raise ConnectionError("the network")

    ahead = _read_ahead(rows(), 2)
    assert next(ahead) == 1
    with pytest.raises(ConnectionError, match="the network"):
        next(ahead)


def test_the_reader_of_a_plan_ends_with_it(made, monkeypatch):
    """A plan of a stream, of which somebody wants the first batch."""
    from coordinate_runs import images_of

    monkeypatch.setattr("spot_hf.data.batches.READ_AHEAD", 1)  # or it may have read all before it is looked for
    images = images_of(made.pictures, streaming=True)
    shards = Shards({"task": set()}, "test", 12, 4)
    state = SimpleNamespace(process_index=0, num_processes=1)
    before = set(threading.enumerate())
    work = iter(Plan(shards, images, state, batch_size=2))
    first = next(work)
    assert [one.index for one in first.images] == [0, 1]
    started = set(threading.enumerate()) - before
    assert started
    work.close()
    for thread in started:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_missing_shards(num_processes):
    import datasets

    images = datasets.Dataset.from_dict({"image": list(range(10))})
    shards = Shards({"a": {0, 2}, "b": {2}}, "test", 10, 3)
    assert shards.total == 4 and shards.missing == [0, 1, 3] and shards.lacks(0) == ["b"]
    work = [
        list(Plan(shards, images, SimpleNamespace(process_index=i, num_processes=num_processes), batch_size=2))
        for i in range(num_processes)
    ]
    done = sorted((one.shard, one.images, one.closes_shard) for part in work for one in part)
    assert done == [
        (0, [0, 1], False), (0, [2], True), (1, [3, 4], False), (1, [5], True), (3, [9], True),
    ]  # fmt: skip
