"""Whether images took the colours of their references: closed form on flat colours, and each mistake."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsynth.pool import Pool
from projects.demo.colours import colour_statistics, reference_swap

GENERATOR = dict(type='TISynth', config_sha256='c', weights_sha256='w')


def flat(*colour: int) -> np.ndarray:
    return np.full((4, 4, 3), colour, np.uint8)


def pool(root: Path, images: list[np.ndarray], references: list[np.ndarray | None], seed: int = 0) -> Pool:
    """A pool with a reference file for every image."""
    with Pool.create(root, {}, ['field'], [[0, 255, 0]]) as made:
        for index, (image, reference) in enumerate(zip(images, references)):
            path = None if reference is None else str(root.with_name(f'{root.name}_{index}.png'))
            if path is not None:
                Image.fromarray(reference).save(path)
            made.add(f's{index}', image, np.zeros((4, 4), np.uint8), source_mask='m', prompt='', seed=seed + index,
                     generator=GENERATOR, reference=path)
    return Pool.open(root)


def test_statistics_are_mean_and_spread_of_each_channel() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, :, 1] = 100
    assert colour_statistics([image]).tolist() == [[0, 50, 0, 0, 50, 0]]


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_moved_is_the_share_of_the_way(tmp_path: Path, share: float) -> None:
    """References go from (50, 50, 50) to (150, 50, 50); images follow by a share."""
    old, new = [flat(50, 50, 50)] * 2, [flat(150, 50, 50)] * 2
    first = pool(tmp_path / 'a', [flat(60, 60, 60)] * 2, old)
    second = pool(tmp_path / 'b', [flat(60 + int(100 * share), 60, 60)] * 2, new)
    swap = reference_swap(first, second)
    assert swap.moved == pytest.approx(share)
    assert swap.first == pytest.approx((300**0.5, (90**2 + 200)**0.5))
    moved = 10 + 100 * share
    assert swap.second == pytest.approx(((moved**2 + 200)**0.5, ((moved - 100)**2 + 200)**0.5))


def test_changes_across_do_not_count(tmp_path: Path) -> None:
    first = pool(tmp_path / 'a', [flat(60, 60, 60)], [flat(50, 50, 50)])
    second = pool(tmp_path / 'b', [flat(60, 160, 60)], [flat(150, 50, 50)])
    assert reference_swap(first, second).moved == pytest.approx(0)


def test_more_images_in_the_second_pool_do_not_count(tmp_path: Path) -> None:
    first = pool(tmp_path / 'a', [flat(60, 60, 60)], [flat(50, 50, 50)])
    second = pool(tmp_path / 'b', [flat(160, 60, 60), flat(0, 0, 0)], [flat(150, 50, 50)] * 2)
    assert reference_swap(first, second).moved == pytest.approx(1)


class TestMistakes:

    def test_other_masks_or_seeds(self, tmp_path: Path) -> None:
        first = pool(tmp_path / 'a', [flat(1, 1, 1)] * 2, [flat(1, 1, 1)] * 2)
        for name, other in (('b', dict(images=[flat(1, 1, 1)], references=[flat(2, 2, 2)])),
                            ('c', dict(images=[flat(1, 1, 1)] * 2, references=[flat(2, 2, 2)] * 2, seed=5))):
            with pytest.raises(ValueError, match='must hold images of the same masks and seeds'):
                reference_swap(first, pool(tmp_path / name, **other))

    def test_no_reference(self, tmp_path: Path) -> None:
        first = pool(tmp_path / 'a', [flat(1, 1, 1)], [flat(1, 1, 1)])
        with pytest.raises(ValueError, match='s0 of .* generated without a reference'):
            reference_swap(first, pool(tmp_path / 'b', [flat(1, 1, 1)], [None]))

    def test_nothing_swapped(self, tmp_path: Path) -> None:
        pools = [pool(tmp_path / name, [flat(1, 1, 1)], [flat(1, 1, 1)]) for name in 'ab']
        with pytest.raises(ValueError, match='have the same colours; nothing was swapped'):
            reference_swap(*pools)
