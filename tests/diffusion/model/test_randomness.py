"""Draws depend on what they are named by, and on nothing else."""

from __future__ import annotations

import torch

from sparsight.diffusion.model.randomness import Stream, sample_normal, sample_uniform


def normal(index: list[int], seed: int = 0, step: int = 0, stream: Stream = Stream.NOISE) -> torch.Tensor:
    return sample_normal((2, 8, 8), seed=seed, step=step, index=torch.tensor(index), stream=stream)


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = normal([5, 6, 7, 8])
    assert torch.equal(whole[2:], normal([7, 8]))
    assert torch.equal(whole[[3, 0]], normal([8, 5]))


def test_seed_step_index_and_stream_all_matter() -> None:
    base = normal([5])
    for other in (normal([6]), normal([5], seed=1), normal([5], step=1), normal([5], stream=Stream.START)):
        assert (base - other).abs().min() > 0
        assert abs(float((base * other).mean())) < 0.4


def test_draws_are_standard_normal_and_uniform() -> None:
    draws = normal(list(range(2000)))
    assert abs(float(draws.mean())) < 0.01 and abs(float(draws.std()) - 1) < 0.01
    uniform = sample_uniform(seed=0, step=3, index=torch.arange(4000), stream=Stream.TIMESTEP)
    assert 0 <= float(uniform.min()) < 0.01 and 0.99 < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
