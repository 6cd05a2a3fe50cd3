import math

import pytest
import torch
from transformers import get_scheduler

from sparsight.common.training.lr_schedules import SCHEDULES

WARMUP, STEPS = 3, 10
SHARES = {  # of the learning rate, after the warm-up, by the share of the remaining steps that are done
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "cosine_with_restarts": lambda done: (1 + math.cos(math.pi * done)) / 2,  # one cycle, if nobody says otherwise
    "polynomial": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "constant_with_warmup": lambda done: 1.0,
}


def rates(name: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_needs_no_further_option_and_is_what_its_name_says(name: str) -> None:
    rising = [1.0] * WARMUP if name == "constant" else [step / WARMUP for step in range(WARMUP)]
    falling = [SHARES[name](step / (STEPS - WARMUP)) for step in range(STEPS - WARMUP)]
    assert rates(name) == pytest.approx(rising + falling, abs=1e-6)
