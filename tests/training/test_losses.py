import typing

import pytest
import torch

from steel.training.losses import LossName, build_loss

NAMES = typing.get_args(LossName)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reduces_false_alarms_on_a_clean_batch(name: LossName) -> None:
    logits = torch.full((2, 4, 16, 32), -4.0)
    logits[0, 1, 4:8, 4:8] = 3.0
    logits.requires_grad_()
    build_loss(name)(logits, torch.zeros(2, 4, 16, 32)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 1, 4:8, 4:8] > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_loss_is_finite_on_a_full_size_mask_in_half_precision(name: LossName, fill: float) -> None:
    logits = torch.full((1, 4, 256, 1600), 2.0, dtype=torch.float16, requires_grad=True)
    loss = build_loss(name)(logits, torch.full((1, 4, 256, 1600), fill))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_better_predictions_have_a_lower_loss(name: LossName) -> None:
    targets = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    losses = [float(build_loss(name)((2 * targets - 1) * logit, targets)) for logit in (-3.0, 0.0, 1.0, 6.0)]
    assert losses == sorted(losses, reverse=True)


def test_focal_tversky_equals_a_computation_by_hand() -> None:
    # One class, two pixels: p = (0.8, 0.4), truth = (1, 0).
    p = torch.tensor([0.8, 0.4])
    logits = torch.logit(p).view(1, 1, 1, 2)
    targets = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    index = (0.8 + 1) / (0.8 + 0.3 * 0.4 + 0.7 * 0.2 + 1)
    focal = 0.5 * (-(0.2**2) * p[0].log() - 0.4**2 * (1 - p[1]).log()) / 2
    expected = (float(focal) + (1 - index) ** 0.75) / 2
    assert float(build_loss("focal_tversky")(logits, targets)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_positive_weight_scales_the_pixel_wise_loss_of_positives(name: LossName) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 2, 8, 8, generator=generator), torch.rand(2, 2, 8, 8, generator=generator) > 0.7
    weight = torch.tensor([1.0, 9.0])[:, None, None]
    p = logits.double().sigmoid()
    p_truth = torch.where(targets, p, 1 - p)
    # Focal loss has the factor alpha * (1 - p_truth)^2 with alpha = 0.5.
    plain = -p_truth.log() * (0.5 * (1 - p_truth) ** 2 if "focal" in name else 1)
    difference = (plain * torch.where(targets, weight - 1, 0.0)).mean()
    share = 1 if name in ("bce", "focal") else 0.5
    weighted, unweighted = (build_loss(name, w)(logits, targets.float()) for w in (weight, None))
    assert float(weighted - unweighted) == pytest.approx(share * float(difference), rel=1e-3)
