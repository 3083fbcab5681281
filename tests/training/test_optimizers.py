import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steel.training.optimizers import OptimizerName, ScheduleName, build_optimizer, build_schedule
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


def take_steps(name: OptimizerName, kernels: tuple[bool, bool]) -> torch.Tensor:
    """Return the weights after two steps with each of two optimizers; the second resumes from the first."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    state = None
    for is_fused in kernels:
        optimizer = build_optimizer(name, network, [], lr=0.1, weight_decay=0.2, eps=1e-8, is_fused=is_fused)
        if state:
            optimizer.load_state_dict(state)
        assert {group["fused"] for group in optimizer.param_groups} == {is_fused or None}
        for _ in range(2):
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        state = optimizer.state_dict()
    return network.weight.detach()


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_a_resumed_run_uses_the_kernel_of_its_own_device(name: OptimizerName) -> None:
    """The checkpoint may come from another device, or from before there was a fused kernel."""
    for kernels in ((False, True), (True, False)):
        torch.testing.assert_close(take_steps(name, kernels), take_steps(name, (False, False)))


def test_gradients_that_are_clipped_in_float16_have_no_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefectClassifier, "device", torch.device("cuda"))
    task = DefectClassifier(num_classes=2)
    fused = {}
    for precision in ("16-mixed", "bf16-mixed"):
        for clip in (None, 1.0):
            task._trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip)  # type: ignore[assignment]
            fused[precision, clip] = task.build_optimizer().defaults["fused"]
    assert fused == {
        ("16-mixed", None): True, ("16-mixed", 1.0): None, ("bf16-mixed", None): True, ("bf16-mixed", 1.0): True,
    }  # fmt: skip
