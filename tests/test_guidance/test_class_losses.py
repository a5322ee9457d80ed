"""Class-wise mean losses: the released formula, batches that do not matter, and files that are checked in full."""
import json
import math

import pytest
import torch

from mmsynth.guidance.class_losses import ClassLosses, ClassLossMeter, pixel_losses

NAMES = ('field', 'road', 'water')


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (6, 3, 8, 8) and labels in which water never occurs and some pixels are unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (6, 8, 8), generator=generator)
    labels[:, 0] = 255
    return 3 * torch.randn(6, 3, 8, 8, generator=generator), labels


def test_the_mean_is_the_released_formula() -> None:
    logits, labels = data()
    meter = ClassLossMeter(3)
    meter.update(pixel_losses(logits, labels), labels)
    fitted = meter.compute(NAMES)
    per_pixel = -logits.double().log_softmax(1)
    for index in (0, 1):
        here = labels == index
        expected = per_pixel[:, index][here].sum() / (here.sum() + 1e-5)
        assert fitted.mean_loss[index] == pytest.approx(float(expected), rel=1e-6)
        assert fitted.pixels[index] == int(here.sum())
    assert fitted.mean_loss[2] is None and fitted.pixels[2] == 0


@pytest.mark.parametrize('sizes', [[6], [1] * 6, [4, 2]])
def test_batches_do_not_matter(sizes: list[int]) -> None:
    logits, labels = data()
    losses = pixel_losses(logits, labels)
    whole, parts = ClassLossMeter(3), ClassLossMeter(3)
    whole.update(losses, labels)
    for part, own in zip(losses.split(sizes), labels.split(sizes)):
        parts.update(part, own)
    one, other = whole.compute(NAMES), parts.compute(NAMES)
    assert one.pixels == other.pixels
    assert one.mean_loss[:2] == pytest.approx(other.mean_loss[:2], rel=1e-12)


def test_unlabelled_pixels_count_for_nothing() -> None:
    logits, labels = data()
    losses = pixel_losses(logits, labels)
    assert (losses[:, 0] == 0).all()
    meters = [ClassLossMeter(3), ClassLossMeter(3)]
    meters[0].update(losses, labels)
    meters[1].update(losses[:, 1:], labels[:, 1:])
    assert meters[0].compute(NAMES) == meters[1].compute(NAMES)


def test_a_file_gives_back_what_was_written(tmp_path) -> None:
    losses = ClassLosses(NAMES, (0.25, 0.1 + 0.2, None), (3, 4, 0), dict(segmentor_sha256='ab', num_images=2))
    losses.write(tmp_path / 'losses.json')
    assert ClassLosses.read(tmp_path / 'losses.json') == losses


@pytest.mark.parametrize('changes, message', [
    (dict(class_names=['a', 'a', 'b']), '`class_names` must be different names'),
    (dict(class_names='abc'), '`class_names` must be a list'),
    (dict(mean_loss=[1.0, 2.0]), r'one value per class \(3\), got 2 and 3'),
    (dict(mean_loss=[1.0, -1.0, None]), "`mean_loss` of 'road' must be a finite number >= 0"),
    (dict(mean_loss=[1.0, 'x', None]), "`mean_loss` of 'road' must be a finite number"),
    (dict(mean_loss=[1.0, math.inf, None]), 'Infinity is not JSON'),
    (dict(pixels=[1, 2.5, 0]), "`pixels` of 'road' must be an integer >= 0"),
    (dict(provenance=[]), '`provenance` must be an object'),
    (dict(format_version=9), '`format_version` must be 1, got 9'),
    (dict(more=1), 'exactly the keys class_names'),
])
def test_wrong_files_are_named_with_the_way_out(changes: dict, message: str, tmp_path) -> None:
    path = tmp_path / 'losses.json'
    ClassLosses(NAMES, (0.5, 0.5, None), (3, 4, 0)).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as error:
        ClassLosses.read(path)
    assert str(path) in str(error.value) and 'tools/fit_class_loss.py' in str(error.value)


def test_a_missing_file_says_what_makes_it(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match='make them with tools/fit_class_loss.py'):
        ClassLosses.read(tmp_path / 'no.json')
