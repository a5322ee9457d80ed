"""The Fréchet metric: closed forms with a judge whose features are colours, sources of real images, mistakes."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_judges import CLASSES, IGNORED, PALETTE, Colours, generated, halves, measure
from PIL import Image

from mmsynth.evaluation import FrechetDistance, Gaussian, Judge, frechet_distance

MASK = halves(0, 1, side=4)


def frechet(**options) -> FrechetDistance:
    return FrechetDistance(Judge(Colours().judge()), guidance={}, **options)


def flat(colour: np.ndarray) -> np.ndarray:
    """An image (4, 4, 3) of one colour."""
    return np.broadcast_to(colour, (4, 4, 3)).astype(np.uint8)


def colours(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (count, 3))


def test_a_shift_costs_its_square_over_all_and_per_class() -> None:
    """All colours 51 brighter in red, and 0.2 of 1 squared."""
    rows = colours(12)
    real, synthetic = [flat(row) for row in rows], [flat(row + [51, 0, 0]) for row in rows]
    result = measure(frechet(), generated(*((image, MASK) for image in synthetic)), real=real)
    assert result == pytest.approx({
        'frechet/images': 12, 'frechet/real_images': 12, 'frechet/distance': 0.04, 'frechet/class.field': 0.04,
        'frechet/class.road': 0.04}, abs=1e-6)


def test_the_distance_is_that_of_the_features() -> None:
    first, second = colours(9), colours(9, seed=1)
    result = measure(frechet(min_class_samples=10), generated(*((flat(row), MASK) for row in first)),
                     real=[flat(row) for row in second])
    expected = frechet_distance(*(Gaussian.fit(torch.from_numpy(rows / 255)) for rows in (first, second)))
    assert result['frechet/distance'] == pytest.approx(expected, rel=1e-4)
    assert not [name for name in result if 'class.' in name]  # nine images are fewer than ten


def test_batches_make_no_difference() -> None:
    samples = generated(*((flat(row), MASK) for row in colours(7)))
    real = [flat(row) for row in colours(7, seed=1)]
    one, all_at_once = (measure(frechet(min_class_samples=2), samples, size, real) for size in (1, 7))
    assert one == pytest.approx(all_at_once, rel=1e-4)


def test_unlabelled_pixels_count_for_the_image_only() -> None:
    rows = colours(4)
    masks = [halves(0, IGNORED, side=4)] * 4
    images = [flat(row) for row in rows]
    result = measure(frechet(min_class_samples=2), generated(*zip(images, masks)), real=images)
    assert result.keys() >= {'frechet/distance', 'frechet/class.field'} and 'frechet/class.road' not in result


@pytest.fixture
def real_set(tmp_path: Path) -> dict:
    """A data set of twelve real images of one colour each, as a config."""
    for kind in ('images', 'masks'):
        (tmp_path / kind).mkdir()
    for number, row in enumerate(colours(12, seed=2)):
        Image.fromarray(flat(row)).save(tmp_path / 'images' / f'{number:02}.png')
        Image.fromarray(MASK).save(tmp_path / 'masks' / f'{number:02}.png')
    (tmp_path / 'meta.json').write_text(json.dumps(dict(name='x', classes=CLASSES, palette=PALETTE)))
    return dict(
        type='mmsynth.ManifestDataset', data_root=str(tmp_path), meta_file='meta.json', img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=[
            dict(type='LoadImageFromFile'), dict(type='mmsynth.LoadSegMap'), dict(type='mmsynth.PackSynthInputs')])


def test_real_images_of_a_data_set(real_set: dict) -> None:
    """The same as if they had come with the batches; RGB on both sides."""
    rows = colours(12, seed=2)
    samples = generated(*((flat(row), MASK) for row in colours(12)))
    expected = measure(frechet(), samples, real=[flat(row) for row in rows])
    assert measure(frechet(real=real_set), samples) == pytest.approx(expected, rel=1e-4)
    same = generated(*((flat(row), MASK) for row in rows))
    assert measure(frechet(real=real_set), same)['frechet/distance'] == pytest.approx(0, abs=1e-9)


def test_some_of_the_real_images_spread_evenly_and_read_once(real_set: dict) -> None:
    samples = generated(*((flat(row), MASK) for row in colours(12)))
    expected = measure(frechet(), samples[:4], real=[flat(row) for row in colours(12, seed=2)[::3]])
    own = frechet(real=real_set, num_real=4)
    assert measure(own, samples[:4]) == pytest.approx(expected, rel=1e-4)
    own._real_config = dict(type='gone')
    assert measure(own, samples)['frechet/real_images'] == 4


def test_random_transforms_of_the_real_images_are_drawn_alike(real_set: dict) -> None:
    real_set['pipeline'].insert(2, dict(type='RandomCrop', crop_size=(2, 2)))
    for path in Path(real_set['data_root'], 'images').iterdir():
        Image.fromarray(np.random.default_rng(3).integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(path)
    samples = generated(*((flat(row), MASK) for row in colours(3)))
    np.random.seed(0)
    first = measure(frechet(real=real_set), samples)
    state = np.random.get_state()[1].copy()
    assert measure(frechet(real=real_set), samples) == first
    assert np.array_equal(np.random.get_state()[1], state)


def test_one_image_is_too_few() -> None:
    result = measure(frechet(), generated((flat(colours(1)), MASK)), real=[flat(colours(1))])
    assert result == {'frechet/images': 1, 'frechet/real_images': 1}


def test_real_images_of_other_classes(real_set: dict, tmp_path: Path) -> None:
    meta = dict(name='x', classes=CLASSES[::-1], palette=PALETTE)
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(ValueError, match='`real`.* water, road, field; .*field, road, water'):
        measure(frechet(real=real_set), generated((flat(colours(1)), MASK)))


def test_no_real_images() -> None:
    with pytest.raises(ValueError, match='LoadImageFromFile.*`real`'):
        measure(frechet(), generated((flat(colours(1)), MASK)))


def test_real_images_that_were_normalised() -> None:
    own = frechet()
    own.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(ValueError, match=r'must come as the host loads them, uint8'):
        own.process(dict(inputs=[torch.zeros(3, 4, 4)]), generated((flat(colours(1)), MASK)))


@pytest.mark.parametrize('options, message', [
    (dict(), 'exactly one of `judge` and `inception` must be given, got neither'),
    (dict(judge=Judge(Colours().judge()), inception='w.pth'), 'got both'),
    (dict(judge=Judge(Colours().judge()), num_real=5), '`num_real` goes with `real`.*got 5 without `real`'),
    (dict(judge=Judge(Colours().judge()), real=dict(type='x'), num_real=1), 'at least 2, got 1'),
    (dict(judge=Judge(Colours().judge()), min_class_samples=1), '`min_class_samples` must be at least 2.*got 1'),
    (dict(inception='/nowhere/w.pth'), '/nowhere/w.pth does not exist'),
])
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        FrechetDistance(**options)


def test_a_judge_of_windows() -> None:
    segmentor = Colours()
    segmentor.test_cfg = dict(mode='slide')
    with pytest.raises(ValueError, match='`model.test_cfg='):
        FrechetDistance(Judge(segmentor.judge()), guidance={})
