"""Dealing samples to processes."""

from __future__ import annotations

import pytest

from sparsight.evaluation.images.draws import OwnDraws


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("num_samples", [1, 5, 6])
def test_every_sample_counts_once_and_all_processes_draw_equally_many(num_samples: int, processes: int) -> None:
    shares = [OwnDraws(num_samples, processes=processes, rank=rank) for rank in range(processes)]
    for share in shares:
        share.fill(["a", "b", "c"])
    counted = [draw for share in shares for draw in share.all() if draw.counted]
    assert sorted(draw.id for draw in counted) == list(range(num_samples))
    assert all(draw.condition == "abc"[draw.id % 3] for draw in counted)
    assert len({len(share.all()) for share in shares}) == 1
    assert sum(share.counted for share in shares) == num_samples


def test_the_first_records_of_the_data_are_taken_whatever_the_number_of_processes() -> None:
    records = list(range(100, 111))  # ids; condition 2 x id
    for processes in (1, 2, 3):
        taken = []
        for rank in range(processes):
            own = OwnDraws(7, processes=processes, rank=rank)
            for batch in (records[rank::processes][:2], records[rank::processes][2:]):
                own.add(batch, [2 * i for i in batch])
            taken += [(draw.id, draw.condition) for draw in own.all() if draw.counted]
        assert sorted(taken) == [(i, 2 * i) for i in records[:7]]


def test_a_process_that_met_one_record_less_repeats_its_last_one_uncounted() -> None:
    own = OwnDraws(3, processes=2, rank=1)
    own.add([1], ["x"])
    assert not own.complete and own.counted == 1
    assert [(draw.id, draw.counted) for draw in own.all()] == [(1, True), (1, False)]
