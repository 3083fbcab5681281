import math

import pytest
import torch
from torch import nn

from steel.training.optimizers import ScheduleName, build_optimizer, build_schedule
from steel.training.tasks import DefectClassifier


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 20 steps, 4 of which are warm-up
        ("cosine", [0.2, 0.4, 0.6, 0.8] + [0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)]),
        ("constant", [0.2, 0.4, 0.6, 0.8] + [1.0] * 16),
    ],
)
def test_schedule_equals_the_formula(name: ScheduleName, expected: list[float]) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = build_optimizer("adamw", network, [network[0]], lr=0.1, weight_decay=0.2, eps=1e-8)
    scheduler = build_schedule(name, optimizer, num_steps=20, warmup=0.2, num_frozen_steps=6)
    rates = {True: [], False: []}  # of the encoder, and of the rest
    for _ in range(20):
        for group in optimizer.param_groups[1:3]:
            rates[group["is_encoder"]].append(group["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[False] == pytest.approx([0.1 * factor for factor in expected])
    assert rates[True] == pytest.approx([0.0] * 6 + rates[False][6:])


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("nadam", torch.optim.NAdam)]
)
def test_optimizers_decay_neither_norms_nor_biases(name: str, kind: type) -> None:
    task = DefectClassifier(optimizer=name, lr=0.1, eps=0.05, weight_decay=0.2, num_classes=2)  # type: ignore[arg-type]
    optimizer = task.build_optimizer()
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        is_decayed = group["weight_decay"] > 0
        assert (group["lr"], group["eps"], group["weight_decay"]) == (0.1, 0.05, 0.2 if is_decayed else 0.0)
        assert all((p.ndim > 1) == is_decayed for p in group["params"])
    num_encoder = sum(len(group["params"]) for group in optimizer.param_groups if group["is_encoder"])
    assert num_encoder == len([name for name, _ in task.network.named_parameters() if ".fc." not in name])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.parameters()))


def test_the_encoder_has_a_learning_rate_of_its_own() -> None:
    task = DefectClassifier(lr=0.1, encoder_lr_factor=0.25, num_classes=2)
    rates = {group["is_encoder"]: group["lr"] for group in task.build_optimizer().param_groups}
    assert rates == {True: pytest.approx(0.025), False: 0.1}
