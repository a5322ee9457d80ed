"""Objectives in closed form, what does not count, and the message of each mistake."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsynth.guidance.base import CriticOutput
from mmsynth.guidance.class_losses import ClassLosses
from mmsynth.guidance.objectives import OBJECTIVES, Objective, build_objective

MASKS = torch.tensor([[[0, 0, 1, 255]], [[2, 2, 2, 255]], [[255, 255, 255, 255]]])
LOSS = torch.tensor([[[1., 2., 4., 0.]], [[5., 5., 5., 0.]], [[0., 0., 0., 0.]]])
WRONG = torch.tensor([[[False, True, True, False]], [[True, False, False, False]], [[False] * 4]])


def output(loss: Tensor = LOSS, logits: Tensor | None = None) -> CriticOutput:
    return CriticOutput(loss, WRONG, MASKS != 255, logits)


@pytest.mark.parametrize('settings, loss, remaining', [
    ('misread', [3, 5, 0], [2 / 3, 1 / 3, 0]),
    ('mask', [7 / 3, 5, 0], [2 / 3, 1 / 3, 0]),
    ('hardness', [-7 / 3, -5, 0], [1 / 3, 2 / 3, 1]),
    (dict(name='misread', class_weights=[1, 3, 0]), [(2 + 3 * 4) / 4, 0, 0], [4 / 5, 0, 0]),
    (dict(name='mask', class_weights=[1, 3, 0]), [(1 + 2 + 3 * 4) / 5, 0, 0], [4 / 5, 0, 0]),
    # of two thirds class 0 of mean loss 1.5 and a third class 1 of loss 4; then of class 2 alone
    (dict(name='target', targets=[1, 3, 8]), [2 / 3 * 0.5 + 1 / 3, 3, 0], [(2 / 3 * 0.5 + 1 / 3) / (5 / 3), 3 / 8, 0]),
    (dict(name='target', targets=[1, math.nan, math.nan]), [0.5, 0, 0], [0.5, 0, 0]),
])
def test_closed_forms(settings: str | dict, loss: list[float], remaining: list[float]) -> None:
    value = build_objective(settings)(output(), MASKS)
    assert value.loss.tolist() == pytest.approx(loss)
    assert value.remaining.tolist() == pytest.approx(remaining)


def test_uncertainty_is_the_mean_entropy_of_the_pixels_that_count() -> None:
    logits = torch.zeros(3, 4, 1, 4)
    logits[0, 1, 0, 0] = 1000  # sure
    logits[1, :2] = 1000  # two of four classes alike: half of the entropy
    value = build_objective('uncertainty')(output(logits=logits), MASKS)
    assert value.loss.tolist() == pytest.approx([-2 / 3, -0.5, 0])
    assert value.remaining.tolist() == pytest.approx([1 / 3, 0.5, 1])


def test_a_target_pulls_easy_classes_up_and_hard_ones_down() -> None:
    loss = LOSS.clone().requires_grad_()
    Objective('target', targets=[3, 3, 5])(output(loss), MASKS).loss.sum().backward()
    assert loss.grad[0].tolist() == [pytest.approx([-1 / 3, -1 / 3, 1 / 3, 0])]
    assert loss.grad[1:].eq(0).all()  # as hard as it is to be


@pytest.mark.parametrize('name', OBJECTIVES)
def test_unlabelled_pixels_do_not_count(name: str) -> None:
    logits = torch.randn(3, 3, 1, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    valid = MASKS != 255
    loss = F.cross_entropy(logits, MASKS, ignore_index=255, reduction='none')
    objective = Objective(name, targets=[1, 2, 3] if name == 'target' else None)
    value = objective(CriticOutput(loss, valid & (logits.argmax(1) != MASKS), valid, logits), MASKS)
    gradient, = torch.autograd.grad(value.loss.sum(), logits)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert gradient[..., 3].eq(0).all() and gradient[2].eq(0).all()
    assert ((value.remaining >= 0) & (value.remaining <= 1)).all() and not value.remaining.requires_grad


def test_numbers_come_from_the_class_losses_of_a_segmentor(tmp_path) -> None:
    file = str(tmp_path / 'class_losses.json')
    ClassLosses(('field', 'road', 'water'), (0.5, 2.0, None), (10, 10, 0)).write(file)
    assert Objective(class_weights=file).class_weights == [0.25, 1, 0]
    targets = Objective('target', targets=file).targets
    assert targets[:2] == [0.5, 2] and math.isnan(targets[2])


@pytest.mark.parametrize('settings, message', [
    ('easier', '`objective` must be one of misread.*easier'),
    (dict(name='target'), '`objective.targets`'),
    (dict(name='mask', targets=[1.0]), '`objective.targets`'),
    (dict(name='mask', class_weights=[-1.0, 1]), '`objective.class_weights`'),
    (dict(name='mask', class_weights=[0, 0]), '`objective.class_weights`'),
    (dict(name='target', targets=[math.inf]), '`objective.targets`'),
    (dict(name='mask', weight=1), '`objective` does not know weight'),
])
def test_wrong_settings(settings: str | dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(settings)


def test_numbers_are_one_per_class() -> None:
    objective = Objective('target', targets=[1, 2], class_weights=[1, 2])
    objective.check_num_classes(2)
    with pytest.raises(ValueError, match='`objective.targets` must have one number per class'):
        objective.check_num_classes(3)


def test_uncertainty_needs_logits() -> None:
    with pytest.raises(ValueError, match='uncertainty'):
        build_objective('uncertainty')(output(), MASKS)
