"""Masks chosen by uncertainty: the score in closed form, the choice, and what it needs."""
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_generator import segmentor
from tiny_masks import CLASSES, MemoryMasks
from torch import Tensor, nn
from toy_critic import LatentReader

from mmsynth.datasets.mask_sources import TransformedMasks, UncertainMasks, mask_uncertainty
from mmsynth.datasets.mask_sources.uncertain import choose_proportional, choose_top
from mmsynth.guidance import Critic, SegmentorCritic

UNSURE, HALF, SURE = 0.0, 0.5, 1.0  # grey values of images, by what GreyCritic makes of them


class GreyCritic(Critic):
    """Knows white pixels for class 0, is torn between two classes over grey ones, between all three over black."""

    num_classes, ignore_index = 3, 255

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def predict_logits(self, images: Tensor) -> Tensor:
        grey = images.mean(1) * self.weight
        return torch.stack([1000 * (grey > 0.8), torch.zeros_like(grey), -1000 * (grey > 0.3)], 1)


class Records(MemoryMasks):
    """Masks with an image file each; None leaves the image out."""

    def __init__(self, folder: Path, images: list[np.ndarray | None], stored: list[np.ndarray]) -> None:
        super().__init__(stored)
        self.images = []
        for index, image in enumerate(images):
            path = folder / f'{index}.png'
            self.images.append(None if image is None else str(path))
            if image is not None:
                Image.fromarray(image).save(path)

    def get_data_info(self, idx: int) -> dict:
        return super().get_data_info(idx) | dict(img_path=self.images[idx])


def grey(value: float, size: tuple[int, int] = (4, 4)) -> np.ndarray:
    return np.full((*size, 3), round(255 * value), np.uint8)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """m0 sure, m1 unsure, m2 half sure, m3 sure: a road on m1 and m2 only, and m2 is smaller."""
    field = np.zeros((4, 4), np.uint8)
    stored = [field, np.eye(4, dtype=np.uint8), np.eye(3, dtype=np.uint8), field]
    return Records(tmp_path, [grey(SURE), grey(UNSURE), grey(HALF, (3, 3)), grey(SURE)], stored)


def ids(source: UncertainMasks) -> list[str]:
    return [source.get_data_info(index)['sample_id'] for index in range(len(source))]


# ---- the score


def test_uncertainty_is_the_mean_entropy_over_log_k():
    images = torch.full((4, 3, 2, 2), HALF)
    images[0], images[1] = UNSURE, SURE
    images[3, :, 0] = UNSURE
    scores = mask_uncertainty(GreyCritic(), images, torch.zeros(4, 2, 2, dtype=torch.long))
    half = math.log(2) / math.log(3)
    assert scores.tolist() == pytest.approx([1, 0, half, (1 + half) / 2], abs=1e-6)


def test_only_pixels_of_the_classes_named_count_and_never_unlabelled_ones():
    images = torch.full((1, 3, 2, 2), SURE)
    images[..., 0, 0] = UNSURE
    critic, masks = GreyCritic(), torch.tensor([[[1, 0], [255, 0]]])
    assert mask_uncertainty(critic, images, masks).item() == pytest.approx(1 / 3)
    assert mask_uncertainty(critic, images, masks, [1]).item() == pytest.approx(1)
    assert mask_uncertainty(critic, images, masks, [0]).item() == pytest.approx(0)
    assert mask_uncertainty(critic, images, masks, [2]).item() == 0
    assert mask_uncertainty(critic, images, torch.full_like(masks, 255)).item() == 0


def test_a_segmentor_in_training_is_left_as_found():
    critic = SegmentorCritic(segmentor=SegmentorCritic(dict(model=segmentor())).segmentor)
    critic.segmentor.requires_grad_(True).train()
    before = {name: value.clone() for name, value in critic.segmentor.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    scores = mask_uncertainty(critic, images, torch.zeros(2, 16, 16, dtype=torch.long))
    assert not scores.requires_grad and ((0 < scores) & (scores <= 1)).all()
    assert critic.segmentor.training and all(p.requires_grad for p in critic.segmentor.parameters())
    assert all(torch.equal(value, before[name]) for name, value in critic.segmentor.state_dict().items())
    one = mask_uncertainty(critic, images[1:], torch.zeros(1, 16, 16, dtype=torch.long))
    assert scores[1:].tolist() == pytest.approx(one.tolist(), abs=1e-4)


def test_a_critic_of_latents_is_refused():
    with pytest.raises(ValueError, match='LatentReader reads latents'):
        mask_uncertainty(LatentReader(), torch.rand(1, 4, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long))


# ---- the choice


def test_the_least_sure_come_first(records):
    assert ids(UncertainMasks(records, GreyCritic())) == ['m1', 'm2']
    every = UncertainMasks(records, GreyCritic(), share=1)
    assert ids(every) == ['m1', 'm2', 'm0', 'm3'] and every.scores.tolist() == pytest.approx([0, 1, 0.63093, 0])
    assert ids(UncertainMasks(records, GreyCritic(), share=1, classes=['water', 'road'])) == ['m1', 'm2', 'm0', 'm3']


def test_the_choice_is_recorded_and_the_mask_stays(records):
    sample = UncertainMasks(records, GreyCritic())[1]
    assert sample['mask_origin'] == dict(source='uncertain', of='m2', score=0.63093, rank=1, draw=0,
                                         critic_weights_sha256=None)
    assert sample['gt_seg_map'].tolist() == np.eye(3, dtype=int).tolist() and sample['sample_idx'] == 1


def test_masks_are_drawn_in_proportion_and_drawn_again_under_another_id(records):
    source = UncertainMasks(records, GreyCritic(), rule='proportional', share=2.0)
    names = ids(source)
    assert len(names) == len(set(names)) == 8 and {name.split('+')[0] for name in names} == {'m1', 'm2'}
    assert sum(name.startswith('m1') for name in names) in (4, 5)  # 8 / 1.63
    assert names[:2] == ['m1', 'm1+draw2'] and source[1]['mask_origin']['draw'] == 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(any), st.floats(0.05, 4), st.integers(0, 9))
def test_systematic_sampling_draws_the_share_rounded_up_or_down(scores, share, seed):
    ranked = np.array(sorted(scores, reverse=True))
    chosen = choose_proportional(ranked, share, seed)
    count = max(1, round(share * len(ranked)))
    times = np.bincount([rank for rank, _ in chosen], minlength=len(ranked))
    expected = count * ranked / ranked.sum()
    assert len(chosen) == len(set(chosen)) == count and (np.abs(times - expected) < 1 + 1e-6).all()
    assert not times[ranked == 0].any()
    assert [rank for rank, _ in chosen] == sorted(rank for rank, _ in chosen)


def test_top_takes_at_least_one_and_rounds_up():
    scores = np.ones(10)
    assert [len(choose_top(scores, share)) for share in (0.01, 0.3, 0.31, 1.0)] == [1, 3, 4, 10]


def test_chosen_masks_can_be_changed(records):
    sample = TransformedMasks(UncertainMasks(records, GreyCritic()))[0]
    origin = sample['mask_origin']
    assert origin['source'] == 'transform' and origin['of']['source'] == 'uncertain' and origin['of']['of'] == 'm1'
    assert sample['sample_id'].startswith('m1+')


def test_masks_that_were_chosen_before_are_chosen_from(records):
    inner = UncertainMasks(records, GreyCritic(), share=1)
    assert ids(UncertainMasks(inner, GreyCritic(), share=0.5)) == ['m1', 'm2']


# ---- mistakes


def test_changed_masks_are_refused(records):
    with pytest.raises(ValueError, match='let UncertainMasks choose first'):
        UncertainMasks(TransformedMasks(records), GreyCritic())


def test_missing_and_unfit_images_are_named(tmp_path, records):
    stored = [np.zeros((4, 4), np.uint8)]
    with pytest.raises(ValueError, match="m0 has no image.*'target'"):
        UncertainMasks(Records(tmp_path, [None], stored), GreyCritic())
    with pytest.raises(ValueError, match='3 x 4 .* m0 is 4 x 4'):
        UncertainMasks(Records(tmp_path, [grey(SURE, (3, 4))], stored), GreyCritic())
    Path(records.images[0]).unlink()
    with pytest.raises(FileNotFoundError, match='0.png does not exist'):
        UncertainMasks(records, GreyCritic())
    Path(records.images[0]).write_text('not an image')
    with pytest.raises(ValueError, match='0.png cannot be read as an image'):
        UncertainMasks(records, GreyCritic())


@pytest.mark.parametrize('options, message', [
    (dict(rule='best'), "`rule` must be one of top, proportional, got 'best'"),
    (dict(share=1.5), '`share` must be in (0, 1] with the rule top and over 0 otherwise, got 1.5'),
    (dict(share=0.0, rule='proportional'), '`share` must be'),
    (dict(classes=['lake']), f"`classes` has 'lake', which the data set does not know; its classes are "
     f'{", ".join(CLASSES)}.'),
    (dict(classes=['water']), 'every mask has the uncertainty 0: the segmentor is certain of all images, or no mask '
     "holds a pixel of `classes` ['water']"),
])  # yapf: disable
def test_wrong_options_are_named(records, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UncertainMasks(records, GreyCritic(), **options)


def test_a_broken_segmentor_is_refused(records):
    critic = GreyCritic()
    critic.weight.data.fill_(float('nan'))
    critic.predict_logits = lambda images: images * critic.weight
    with pytest.raises(ValueError, match='not finite for 4 images.* m0'):
        UncertainMasks(records, critic)


def test_a_segmentor_of_other_classes_is_refused(records):
    records.metainfo['classes'] = CLASSES[:2]
    with pytest.raises(ValueError, match='3 classes.* 2'):
        UncertainMasks(records, GreyCritic())
