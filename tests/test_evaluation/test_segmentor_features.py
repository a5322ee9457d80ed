"""Features of a segmentor: closed forms with a judge whose features are colours, a real segmentor, and mistakes."""
import math

import pytest
import tiny_generator
import torch
import torch.nn.functional as F
from colour_judges import Colours
from torch import Tensor

from mmsynth.evaluation import FeatureSet, class_distances, feature_distance, read_with_features
from mmsynth.evaluation.segmentor_features import PooledFeatures
from mmsynth.guidance import SegmentorCritic

K, IGNORED = 3, 255
RED, GREEN = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])


def halves(left: Tensor, right: Tensor, height: int = 4) -> Tensor:
    """An image (1, 3, height, 4)."""
    return torch.stack([left, left, right, right], 1)[None, :, None].expand(1, 3, height, 4)


def mask_of(*columns: int, height: int = 4) -> Tensor:
    return torch.tensor(columns).expand(1, height, 4)


def test_features_are_averaged_over_images_and_classes() -> None:
    reading, pooled = read_with_features(Colours().judge(), halves(RED, GREEN), mask_of(0, 0, 1, 1))
    assert reading.tolist() == mask_of(0, 0, 1, 1).tolist()
    torch.testing.assert_close(pooled.images, (RED + GREEN)[None] / 2)
    torch.testing.assert_close(pooled.classes, torch.stack([RED, GREEN, 0 * RED])[None])
    assert pooled.present.tolist() == [[True, True, False]]


def test_a_cell_counts_by_the_share_of_its_pixels() -> None:
    """Half of a left cell is of class 1, all of a right one."""
    _, pooled = read_with_features(Colours().judge(), halves(RED, GREEN), mask_of(0, 1, 1, 1))
    torch.testing.assert_close(pooled.classes[0, :2], torch.stack([RED, (RED + 2 * GREEN) / 3]))


def test_unlabelled_pixels_count_for_the_image_only() -> None:
    _, pooled = read_with_features(Colours().judge(), halves(RED, GREEN), mask_of(0, 0, IGNORED, -1))
    assert pooled.present.tolist() == [[True, False, False]]
    torch.testing.assert_close(pooled.images, (RED + GREEN)[None] / 2)


@pytest.mark.parametrize('padded', [4, 6, 8])
def test_padding_does_not_count(padded: int) -> None:
    judge = Colours(padded=padded).judge()
    _, pooled = read_with_features(judge, halves(RED, RED, height=2), mask_of(2, 2, 2, 2, height=2))
    torch.testing.assert_close(pooled.images, RED[None])
    torch.testing.assert_close(pooled.classes[0, 2], RED)


def test_a_head_without_last_layer_shows_what_it_is_given() -> None:
    segmentor = Colours(last_layer=False)
    segmentor.backbone.register_forward_hook(lambda module, given, cells: [cells])  # levels, as mmseg's backbones give
    segmentor.predict_logits = lambda images: F.interpolate(segmentor.backbone(images)[0], scale_factor=2)
    _, pooled = read_with_features(segmentor.judge(), halves(RED, GREEN), mask_of(0, 0, 1, 1))
    torch.testing.assert_close(pooled.classes[0, :2], torch.stack([RED, GREEN]))


def test_a_judge_of_windows_is_refused_and_left_as_found() -> None:
    segmentor = Colours(windows=2)
    with pytest.raises(ValueError, match='2 windows.*`model.test_cfg='):
        read_with_features(segmentor.judge(), halves(RED, GREEN), mask_of(0, 0, 1, 1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in segmentor.modules())


def test_a_real_segmentor_shows_what_its_last_layer_is_given() -> None:
    torch.manual_seed(0)
    judge = SegmentorCritic(dict(model=tiny_generator.segmentor()))
    images, masks = torch.rand(2, 3, 16, 16), torch.randint(3, (2, 16, 16))
    reading, pooled = read_with_features(judge, images, masks)
    with torch.no_grad():
        expected = judge.segmentor.decode_head._forward_feature(judge.segmentor.extract_feat(judge._preprocess(images)))
        assert torch.equal(reading, judge.predict_logits(images).argmax(1))
    torch.testing.assert_close(pooled.images, expected.mean((2, 3)))
    assert pooled.classes.shape == (2, 3, expected.shape[1]) and pooled.present.all()
    _, alone = read_with_features(judge, images[:1], masks[:1])
    torch.testing.assert_close(alone.classes, pooled.classes[:1])


def pooled(rows: Tensor, holders: list[list[bool]]) -> PooledFeatures:
    return PooledFeatures(rows, rows[:, None].expand(-1, K, -1), torch.tensor(holders))


def test_a_set_holds_a_row_per_image_and_class() -> None:
    rows = torch.arange(8.0).reshape(4, 2)
    features = FeatureSet(K)
    for start in (0, 2):
        features.add(pooled(rows[start:start + 2], [[True, False, False], [True, True, False]]))
    assert len(features) == 4 and features.class_counts == (4, 2, 0)
    assert torch.equal(features.images, rows) and torch.equal(features.classes[1], rows[1::2])
    assert features.classes[2].shape == (0, 2)


def test_distances_of_sets() -> None:
    """Shifted by (3, 4): 25, overall and for each class that both sets hold often enough."""
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    real, synthetic = FeatureSet(K), FeatureSet(K)
    real.add(pooled(rows, [[True, number < 3, False] for number in range(6)]))
    synthetic.add(pooled(rows + torch.tensor([3.0, 4.0]), [[True, number < 3, True] for number in range(6)]))
    assert feature_distance(real, synthetic) == pytest.approx(25, rel=1e-5)
    first, second, third = class_distances(real, synthetic, min_samples=3)
    assert (first, second) == (pytest.approx(25, rel=1e-5), pytest.approx(25, rel=1e-5)) and math.isnan(third)
    assert math.isnan(class_distances(real, synthetic, min_samples=4)[1])
    with pytest.raises(ValueError, match='`min_samples` must be at least 2.*got 1'):
        class_distances(real, synthetic, min_samples=1)
