"""References: augmented copies for training in closed form, and a stable choice from a folder for synthesis."""
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmsynth.datasets.transforms import (
    FitReference,
    LoadReference,
    PackSynthInputs,
    PickReference,
    ReferenceAugment,
    fit_reference,
)
from mmsynth.registry import TRANSFORMS

SIDE = 32
NEVER = dict(max_shift=0.0, scale_std=0.0, max_rotation=0.0, shift_std=0.0)  # every move is made, and moves nothing


def picture(height: int = SIDE, width: int = SIDE, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that interpolation makes small errors only."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)


def augment(image: np.ndarray, seed: int = 0, **options: float) -> np.ndarray:
    np.random.seed(seed)
    return ReferenceAugment(**options)(dict(img=image))['reference']


def largest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class TestReferenceAugment:

    def test_without_any_move_it_is_a_copy(self) -> None:
        image = picture()
        reference = augment(image, prob=0.0)
        np.testing.assert_array_equal(reference, image)
        assert not np.shares_memory(reference, image)
        np.testing.assert_array_equal(augment(image, prob=1.0, **NEVER), image)

    @pytest.mark.parametrize('seed', range(4))
    def test_whole_pixels_move_exactly_and_the_edge_is_mirrored(self, seed: int) -> None:
        image = picture(24, 40)
        np.random.seed(seed)
        transform = ReferenceAugment(prob=1.0, **NEVER | dict(max_shift=0.25))
        x, y = transform._draw(24, 40)[:2, 2]
        assert x == round(x) and y == round(y) and abs(x) <= 10 and abs(y) <= 6
        padded = np.pad(image, ((10, 10), (10, 10), (0, 0)), mode='reflect')
        expected = padded[10 - int(y):34 - int(y), 10 - int(x):50 - int(x)]
        np.testing.assert_array_equal(augment(image, seed, prob=1.0, **NEVER | dict(max_shift=0.25)), expected)

    def test_shifts_reach_an_eighth_of_the_side(self) -> None:
        np.random.seed(0)
        transform = ReferenceAugment(prob=1.0, **NEVER | dict(max_shift=0.125))
        shifts = np.array([transform._draw(80, 160)[:2, 2] for _ in range(500)])
        assert shifts[:, 0].max() == 20 and shifts[:, 0].min() == -20 and np.abs(shifts[:, 1]).max() == 10

    def test_scale_angle_and_fraction_have_their_spread(self) -> None:
        np.random.seed(0)
        draws = {}
        for option, value in dict(scale_std=0.2, max_rotation=0.1, shift_std=0.125).items():
            transform = ReferenceAugment(prob=1.0, **NEVER | {option: value})
            draws[option] = np.array([transform._draw(100, 200) for _ in range(4000)])
        scales = np.log2(draws['scale_std'][:, 0, 0])
        assert scales.std() == pytest.approx(0.2, rel=0.05) and abs(scales.mean()) < 0.02
        np.testing.assert_allclose(draws['scale_std'][:, 0, 0], draws['scale_std'][:, 1, 1])
        angles = np.arctan2(draws['max_rotation'][:, 1, 0], draws['max_rotation'][:, 0, 0])
        assert np.abs(angles).max() <= 0.1 * np.pi and angles.std() == pytest.approx(0.1 * np.pi / 3**0.5, rel=0.05)
        np.testing.assert_allclose(draws['shift_std'][:, :2, 2].std(0), [25, 12.5], rtol=0.05)

    @pytest.mark.parametrize('option', ['scale_std', 'max_rotation'])
    def test_scaling_and_turning_keep_the_centre(self, option: str) -> None:
        np.random.seed(3)
        matrix = ReferenceAugment(prob=1.0, **NEVER | {option: 0.5})._draw(21, 41)
        np.testing.assert_allclose(matrix @ [20, 10, 1], [20, 10, 1])
        assert not np.allclose(matrix, np.eye(3))

    def test_the_content_follows_the_map(self) -> None:
        """A point of the image is found where the matrix sends it."""
        image = np.zeros((65, 65, 3), np.uint8)
        image[30:33, 40:43] = 255
        np.random.seed(1)
        transform = ReferenceAugment(prob=1.0)
        x, y, _ = transform._draw(65, 65) @ [41, 31, 1]
        reference = augment(image, 1, prob=1.0)
        rows, columns = np.nonzero(reference[..., 0] > 100)
        assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=0.7)

    def test_each_move_is_made_at_its_rate(self) -> None:
        np.random.seed(0)
        transform = ReferenceAugment()
        moved = np.mean([not np.array_equal(transform._draw(64, 64), np.eye(3)) for _ in range(4000)])
        assert moved == pytest.approx(1 - 0.88**4, abs=0.03)

    def test_the_global_seed_decides(self) -> None:
        image = picture()
        np.testing.assert_array_equal(augment(image, 5, prob=1.0), augment(image, 5, prob=1.0))
        assert largest(augment(image, 5, prob=1.0), augment(image, 6, prob=1.0)) > 0

    def test_the_image_is_left_and_the_reference_is_packed(self) -> None:
        image = picture(16, 24)
        before = image.copy()
        np.random.seed(0)
        results = ReferenceAugment(prob=1.0)(dict(img=image, gt_seg_map=np.zeros((16, 24), np.uint8)))
        np.testing.assert_array_equal(image, before)
        packed = PackSynthInputs()(results)
        assert tuple(packed['data_samples'].reference.data.shape) == (3, 16, 24)
        np.testing.assert_array_equal(packed['data_samples'].reference.data.permute(1, 2, 0), results['reference'])

    @pytest.mark.parametrize('options, message', [
        (dict(prob=1.2), r'`prob` must be in \[0, 1\], got 1.2'),
        (dict(max_rotation=-0.1), r'`max_rotation` must be in \[0, 1\], got -0.1'),
        (dict(scale_std=-1), '`scale_std` must be at least 0, got -1'),
    ])
    def test_options_that_cannot_be(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ReferenceAugment(**options)

    def test_without_an_image(self) -> None:
        with pytest.raises(ValueError, match='there is none; put LoadImageFromFile before it'):
            ReferenceAugment()(dict(gt_seg_map=np.zeros((2, 2))))


class TestFit:

    def test_an_image_of_the_size_is_left_as_it_is(self) -> None:
        image = picture()
        for fit in ('resize', 'crop'):
            np.testing.assert_array_equal(fit_reference(image, (SIDE, SIDE), fit), image)

    def test_resize_shows_the_whole_image(self) -> None:
        blocks = picture(8, 8).repeat(4, 0).repeat(2, 1)  # (32, 16)
        np.testing.assert_array_equal(fit_reference(blocks, (8, 8), 'resize'), picture(8, 8))
        assert fit_reference(blocks, (64, 20), 'resize').shape == (64, 20, 3)

    def test_crop_keeps_the_scale_and_takes_the_middle(self) -> None:
        image = picture(30, 50)
        np.testing.assert_array_equal(fit_reference(image, (10, 20), 'crop'), image[10:20, 15:35])

    def test_crop_enlarges_what_would_not_cover_the_mask(self) -> None:
        image = picture(10, 30)
        doubled = cv2.resize(image, (60, 20), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(fit_reference(image, (20, 20), 'crop'), doubled[:, 20:40])

    def test_the_transform_takes_the_size_of_the_mask(self) -> None:
        mask = np.zeros((12, 16), np.uint8)
        assert FitReference()(dict(gt_seg_map=mask, reference=picture()))['reference'].shape == (12, 16, 3)
        assert FitReference()(dict(gt_seg_map=mask)).keys() == {'gt_seg_map'}
        with pytest.raises(ValueError, match='FitReference .*mask'):
            FitReference()(dict(reference=picture()))
        with pytest.raises(ValueError, match="`fit` must be one of resize, crop, got 'pad'"):
            FitReference('pad')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight references, one of them below."""
    (tmp_path / 'refs' / 'more').mkdir(parents=True)
    for index in range(8):
        name = f'more/r{index}.PNG' if index == 7 else f'r{index}.png'
        Image.fromarray(picture(20, 24, index)).save(tmp_path / 'refs' / name)
    (tmp_path / 'refs' / 'notes.txt').write_text('no image')
    return tmp_path / 'refs'


def info(sample_id: str = 'masks/a', **more: object) -> dict:
    """What a pipeline has of a sample when its mask is loaded."""
    mask_path = f'/data/{sample_id}.png'
    return dict(sample_id=sample_id, seg_map_path=mask_path, gt_seg_map=np.zeros((16, 16), np.uint8)) | more


def picks(transform: PickReference, count: int = 40, **more: object) -> list[str]:
    return [Path(transform(info(f'masks/{row}', **more))['reference_path']).name for row in range(count)]


class TestPickReference:

    def test_it_is_the_image_at_its_path_in_the_size_of_the_mask(self, folder: Path) -> None:
        results = TRANSFORMS.build(dict(type='mmsynth.PickReference', folder=str(folder)))(info())
        loaded = LoadReference()(dict(reference_path=results['reference_path']))['reference']
        np.testing.assert_array_equal(results['reference'], fit_reference(loaded, (16, 16), 'resize'))
        cropped = PickReference(str(folder), fit='crop')(info())
        assert cropped['reference_path'] == results['reference_path']
        np.testing.assert_array_equal(cropped['reference'], loaded[2:18, 4:20])

    def test_every_image_is_chosen_sometimes_also_below(self, folder: Path) -> None:
        assert set(picks(PickReference(str(folder)), 100)) == {f'r{row}.png' for row in range(7)} | {'r7.PNG'}

    def test_the_choice_does_not_depend_on_the_order(self, folder: Path) -> None:
        transform = PickReference(str(folder))
        first = picks(transform)
        backwards = [Path(PickReference(str(folder))(info(f'masks/{row}'))['reference_path']).name
                     for row in reversed(range(40))]
        np.random.seed(9)
        assert backwards[::-1] == first == picks(transform)

    def test_seed_and_repeat_make_another_choice(self, folder: Path) -> None:
        plain = picks(PickReference(str(folder)))
        assert picks(PickReference(str(folder), seed=1)) != plain
        assert picks(PickReference(str(folder)), repeat=1) != plain
        assert picks(PickReference(str(folder)), repeat=0) == plain

    def test_a_host_data_set_has_no_ids(self, folder: Path) -> None:
        bare = dict(seg_map_path='/data/a.png', gt_seg_map=np.zeros((16, 16), np.uint8))
        elsewhere = bare | dict(seg_map_path='/other/root/a.png')
        chosen = [PickReference(str(folder))(dict(each))['reference_path'] for each in (bare, elsewhere)]
        assert chosen[0] == chosen[1]

    def test_the_image_of_the_mask_is_never_chosen_by_name(self, folder: Path) -> None:
        for seed in range(30):
            results = PickReference(str(folder), seed)(info('masks/r3'))
            assert Path(results['reference_path']).stem != 'r3'

    def test_nor_by_content(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / 'image.png').write_bytes((folder / 'r5.png').read_bytes())
        chosen = {Path(PickReference(str(folder), seed)(info(img_path=str(tmp_path / 'image.png')))['reference_path'])
                  .stem for seed in range(60)}
        assert chosen == {f'r{row}' for row in range(8)} - {'r5'}

    def test_a_reference_that_is_there_is_replaced(self, folder: Path) -> None:
        results = PickReference(str(folder))(info(reference_path='old.png', reference=picture()))
        assert results['reference_path'] != 'old.png' and results['reference'].shape == (16, 16, 3)

    @pytest.mark.parametrize('write, message', [
        (lambda path: Image.fromarray(picture()[..., 0]).save(path), r'found 1 band \(grey\) of uint8; convert it'),
        (lambda path: Image.fromarray(picture().repeat(2, 2)[..., :4]).save(path), 'found 4 bands of uint8'),
        (lambda path: cv2.imwrite(str(path), picture().astype(np.uint16) * 256), 'found 3 bands of uint16'),
        (lambda path: path.write_bytes(b'no image'), 'found a file that is no image'),
    ], ids=['grey', 'alpha', '16 bit', 'damaged'])
    def test_what_is_no_colour_image_is_named(self, tmp_path: Path, write: Callable, message: str) -> None:
        write(tmp_path / 'one.png')
        with pytest.raises(ValueError, match=rf'one\.png .*{message}'):
            PickReference(str(tmp_path))(info())

    def test_mistakes(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match='no folder .*/none'):
            PickReference(str(tmp_path / 'none'))
        (tmp_path / 'empty').mkdir()
        with pytest.raises(FileNotFoundError, match=r'empty holds no image \(\.png'):
            PickReference(str(tmp_path / 'empty'))
        with pytest.raises(ValueError, match="`fit` must be one of resize, crop, got 'pad'"):
            PickReference(str(folder), fit='pad')
        with pytest.raises(ValueError, match='PickReference .*mask'):
            PickReference(str(folder))(dict(seg_map_path='a.png'))

    def test_a_folder_with_nothing_but_the_own_image(self, tmp_path: Path) -> None:
        Image.fromarray(picture()).save(tmp_path / 'a.png')
        with pytest.raises(ValueError, match='no image but .*masks/a'):
            PickReference(str(tmp_path))(info())

    def test_a_file_that_has_gone(self, tmp_path: Path) -> None:
        Image.fromarray(picture()).save(tmp_path / 'one.png')
        transform = PickReference(str(tmp_path))
        (tmp_path / 'one.png').unlink()
        with pytest.raises(FileNotFoundError, match=r'reference .*one\.png does not exist'):
            transform(info())
