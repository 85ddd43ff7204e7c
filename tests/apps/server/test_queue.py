"""The queue is fair, bounded, and gives batches of one lead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dalle.apps.server.batch import previews
from dalle.apps.server.queue import FairQueue, Full, Job
from dalle.generation.options import SamplingConfig
from dalle.pipelines.request import Request


def job(client: str, count: int, lead: int = 0) -> Job:
    return Job(Request("", tuple(range(count)), SamplingConfig()), client, lead, lambda event: None)


def taken(queue: FairQueue, size: int) -> list[tuple[str, int]]:
    return [(unit.job.client, unit.index) for unit in queue.take(size)]


def test_slots_are_shared_round_robin_among_clients() -> None:
    queue = FairQueue(100, 100)
    queue.add(job("greedy", 6))
    queue.add(job("modest", 1))
    queue.add(job("other", 2))
    assert taken(queue, 4) == [("greedy", 0), ("modest", 0), ("other", 0), ("greedy", 1)]
    queue.add(job("late", 1))
    assert taken(queue, 3) == [("other", 1), ("greedy", 2), ("late", 0)]
    assert taken(queue, 9) == [("greedy", 3), ("greedy", 4), ("greedy", 5)]
    assert taken(queue, 9) == [] and len(queue) == 0


def test_batches_have_one_prefix_length_and_no_job_starves() -> None:
    queue = FairQueue(100, 100)
    queue.add(job("a", 3, lead=8))
    queue.add(job("b", 2))
    queue.add(job("c", 1, lead=8))
    assert taken(queue, 4) == [("a", 0), ("c", 0), ("a", 1), ("a", 2)]
    assert taken(queue, 4) == [("b", 0), ("b", 1)]
    for number in range(5):  # a stream of others does not hold one back
        queue.add(job(f"x{number}", 1))
    queue.add(job("edit", 1, lead=8))
    leads = []
    for number in range(5, 30):
        queue.add(job(f"x{number}", 1))
        leads.append({unit.job.lead for unit in queue.take(1)})
        if leads[-1] == {8}:
            break
    assert leads[-1] == {8}


def test_mixed_images_are_of_any_prefix_length() -> None:
    queue = FairQueue(100, 100)
    queue.add(job("a", 2, lead=8))
    queue.add(job("b", 1))
    units = queue.take(9, mixed=True)
    assert [(unit.job.client, unit.index) for unit in units] == [("a", 0), ("b", 0), ("a", 1)]


def test_queue_is_limited_per_client_and_in_total() -> None:
    queue = FairQueue(5, 3)
    queue.add(job("a", 2))
    with pytest.raises(Full) as error:
        queue.add(job("a", 2))
    assert error.value.by_client
    queue.add(job("b", 3))
    with pytest.raises(Full) as error:
        queue.add(job("c", 1))
    assert not error.value.by_client
    units = queue.take(5)
    with pytest.raises(Full):  # what is drawn counts as the client's too
        queue.add(job("b", 1))
    for unit in units:
        queue.release(unit)
    queue.add(job("b", 3))
    assert not set(queue.held) - {"b"}


def test_dropped_jobs_are_not_taken() -> None:
    queue = FairQueue(10, 10)
    one, two = job("a", 3), job("a", 2)
    queue.add(one)
    queue.add(two)
    (unit,) = queue.take(1)
    queue.drop(one)
    assert taken(queue, 9) == [("a", 0), ("a", 1)] and unit.job is one
    queue.drop(one)
    queue.release(unit)
    assert queue.held["a"] == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 16, 4, 0), ()),
        ((1, 16, 4, 0), (8,)),
        ((3, 16, 4, 0), (4, 8, 12)),
        ((9, 16, 4, 0), (4, 8, 12)),
        ((3, 16, 4, 4), (8, 12)),
        ((2, 64, 8, 3), (24, 40)),
        ((2, 16, 4, 15), ()),
    ],
)
def test_previews_are_sent_at_row_ends(given: Any, expected: tuple[int, ...]) -> None:
    assert previews(*given) == expected


def test_a_batch_is_of_one_size() -> None:
    queue = FairQueue(limit=20, per_client=20)
    queue.add(job("a", 1))
    wide = job("b", 1)
    wide.request = replace(wide.request, size=(12, 4))
    queue.add(wide)
    queue.add(job("c", 1))
    assert [unit.job.client for unit in queue.take(8)] == ["a", "c"]
    assert [unit.job.client for unit in queue.take(8)] == ["b"]
