"""Mask consistency: closed forms with a judge that reads colours, and the message of each mistake."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_judges import CLASSES, IGNORED, PALETTE, ColourJudge, coloured, generated, halves, measure

from mmsynth.evaluation import ConsistencyMeter, Judge, MaskConsistency, mask_consistency, read_image
from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool


def make_pool(root: Path, *pairs: tuple[np.ndarray, np.ndarray], classes: tuple[str, ...] = CLASSES) -> Pool:
    """A pool of (what is seen, mask) pairs, both class maps."""
    with Pool.create(root, {}, classes, PALETTE[:len(classes)]) as pool:
        for index, (seen, mask) in enumerate(pairs):
            pool.add(str(index), coloured(seen), mask, source_mask='m', prompt='', seed=0,
                     generator=dict(type='x', config_sha256='', weights_sha256=None))
    return Pool.open(root)


def test_a_judge_that_reads_everything_gives_one(tmp_path: Path) -> None:
    masks = [halves(0, 1), halves(2, 0)]
    result = mask_consistency(make_pool(tmp_path, *zip(masks, masks)), ColourJudge())
    assert (result.mean_iou, result.accuracy, result.class_iou) == (1.0, 1.0, (1.0, 1.0, 1.0))


def test_areas_add_up_over_the_pool(tmp_path: Path) -> None:
    """Class 0: seen in 64 pixels, meant in 32 + 32 of which half are seen; class 1: 32 of 64 seen as it."""
    pool = make_pool(tmp_path, (halves(0, 0), halves(0, 1)), (halves(1, 1), halves(0, 1)))
    result = mask_consistency(pool, ColourJudge())
    assert result.class_iou[:2] == pytest.approx((32 / 96, 32 / 96)) and result.accuracy == pytest.approx(0.5)
    assert result.mean_iou == pytest.approx(1 / 3)


def test_a_class_that_never_occurs_is_not_averaged(tmp_path: Path) -> None:
    result = mask_consistency(make_pool(tmp_path, (halves(0, 1), halves(0, 1))), ColourJudge())
    assert result.class_iou[:2] == (1.0, 1.0) and math.isnan(result.class_iou[2])
    assert result.mean_iou == 1.0


def test_a_class_that_is_only_seen_counts_as_wrong(tmp_path: Path) -> None:
    result = mask_consistency(make_pool(tmp_path, (halves(0, 2), halves(0, 0))), ColourJudge())
    assert result.class_iou[0] == pytest.approx(0.5) and result.class_iou[2] == 0.0
    assert math.isnan(result.class_iou[1]) and result.mean_iou == pytest.approx(0.25)


def test_ignored_pixels_do_not_count(tmp_path: Path) -> None:
    seen, mask = halves(0, 2), halves(0, IGNORED)
    result = mask_consistency(make_pool(tmp_path, (seen, mask)), ColourJudge())
    assert result.accuracy == 1.0 and result.class_iou[0] == 1.0 and math.isnan(result.class_iou[2])


def test_a_meter_takes_batches_and_single_masks_alike() -> None:
    readings, masks = torch.randint(3, (2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    masks[0, :2] = IGNORED
    batch, single = ConsistencyMeter(3), ConsistencyMeter(3)
    batch.update(readings, masks)
    for reading, mask in zip(readings, masks):
        single.update(reading, mask)
    assert batch.compute() == single.compute()
    assert batch.compute().accuracy == pytest.approx(float((readings == masks)[masks != IGNORED].float().mean()))


def test_a_meter_counts_more_pixels_than_float32_can() -> None:
    """2²⁴ and then one more pixel, which a float32 sum would lose."""
    meter = ConsistencyMeter(2)
    meter._totals[:] = 2**24
    meter.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert meter._totals[0].tolist() == [2**24 + 1, 2**24]


def test_read_image_gives_classes() -> None:
    mask = halves(2, 1)
    reading = read_image(ColourJudge(), coloured(mask))
    assert reading.dtype == np.uint8 and np.array_equal(reading, mask)


@pytest.fixture(scope='module')
def critic() -> SegmentorCritic:
    """A real segmentor of three classes with random weights."""
    norm = dict(type='BN')
    return SegmentorCritic(
        dict(model=dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True),
            backbone=dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4, norm_cfg=norm),
            decode_head=dict(type='FCNHead', in_channels=32, in_index=3, channels=4, num_convs=1, concat_input=False,
                             num_classes=3, norm_cfg=norm, align_corners=False),
            test_cfg=dict(mode='whole'))))


def test_a_segmentor_reads_images_of_any_size(critic: SegmentorCritic, tmp_path: Path) -> None:
    mask = np.zeros((24, 40), np.uint8)
    result = mask_consistency(make_pool(tmp_path, (mask, mask)), critic)
    assert 0 <= result.mean_iou <= 1 and 0 <= result.accuracy <= 1


def test_judge_of_other_classes(critic: SegmentorCritic, tmp_path: Path) -> None:
    pool = make_pool(tmp_path, (halves(0, 1), halves(0, 1)), classes=CLASSES[:2])
    with pytest.raises(ValueError, match='3 classes.* 2'):
        mask_consistency(pool, critic)


def test_empty_pool(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f'pool {tmp_path} is empty'):
        mask_consistency(make_pool(tmp_path), ColourJudge())


# ---- the metric


def metric(**options) -> MaskConsistency:
    return MaskConsistency(Judge(ColourJudge()), guidance={}, **options)


def random_samples(count: int = 5) -> list[dict]:
    rng = np.random.default_rng(0)
    seen, masks = rng.integers(0, 3, (2, count, 8, 8), dtype=np.uint8)
    masks[:, 0] = IGNORED
    return generated(*((coloured(reading), mask) for reading, mask in zip(seen, masks)))


def test_the_metric_gives_mmseg_s_names_in_percent() -> None:
    """IoU 32 of 96 for field and road; half of the pixels, and half of each class's, are read right."""
    seen_and_meant = (halves(0, 0), halves(0, 1)), (halves(1, 1), halves(0, 1))
    result = measure(metric(), generated(*((coloured(seen), mask) for seen, mask in seen_and_meant)))
    assert result == pytest.approx({
        'consistency/mIoU': 100 / 3, 'consistency/aAcc': 50, 'consistency/mAcc': 50, 'consistency/IoU.field': 100 / 3,
        'consistency/IoU.road': 100 / 3})  # no water: left out


def test_the_metric_says_what_the_pool_s_measure_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = [tuple(rng.integers(0, 3, (2, 8, 8), dtype=np.uint8)) for _ in range(3)]
    expected = mask_consistency(make_pool(tmp_path, *pairs), ColourJudge())
    result = measure(metric(), generated(*((coloured(seen), mask) for seen, mask in pairs)))
    assert result['consistency/mIoU'] == pytest.approx(100 * expected.mean_iou)
    assert result['consistency/mAcc'] == pytest.approx(100 * expected.mean_accuracy)


def test_batches_and_ranks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of three samples each, the last of which the sampler has padded with the first."""
    samples = random_samples()
    alone = measure(metric(), samples, batch_size=1)
    assert measure(metric(), samples, batch_size=5) == alone
    ranks = [metric(), metric()]
    for rank, own in enumerate(ranks):
        own.dataset_meta = dict(classes=CLASSES)
        own.process({}, (samples + samples[:1])[rank::2])
    together = [row for pair in zip(*(own.results for own in ranks)) for row in pair]

    def collect(own: list, size: int, *place: object, **options: object) -> list:
        return together[:size]

    monkeypatch.setattr('mmengine.evaluator.metric.collect_results', collect)
    assert ranks[0].evaluate(len(samples)) == alone


def test_unlabelled_masks_give_nothing() -> None:
    assert measure(metric(), generated((coloured(halves(0, 1)), halves(IGNORED, IGNORED)))) == {}


def test_a_metric_of_another_ignore_index() -> None:
    samples = generated((coloured(halves(0, 1)), halves(0, 2)))
    assert measure(metric(ignore_index=2), samples)['consistency/aAcc'] == 100


def test_images_of_different_sizes() -> None:
    pairs = [(coloured(mask), mask) for mask in (halves(0, 1), halves(0, 1, side=4), halves(2, 1))]
    assert measure(metric(), generated(*pairs), batch_size=3)['consistency/mIoU'] == 100


def test_a_metric_that_is_given_no_generated_image() -> None:
    own = metric()
    own.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(ValueError, match='`generated_img`'):
        own.process({}, [dict(gt_sem_seg=dict(data=torch.zeros(1, 4, 4)))])


def test_a_metric_without_class_names() -> None:
    with pytest.raises(ValueError, match='MaskConsistency .*`classes`'):
        metric().dataset_meta = {}


def test_a_metric_of_other_classes(critic: SegmentorCritic) -> None:
    with pytest.raises(ValueError, match='3 classes.* 2'):
        MaskConsistency(critic, guidance={}).dataset_meta = dict(classes=CLASSES[:2])


def test_a_judge_without_weights() -> None:
    with pytest.raises(ValueError, match='`judge` needs a `checkpoint`'):
        MaskConsistency(dict(type='mmsynth.SegmentorCritic', config='c.py'))
