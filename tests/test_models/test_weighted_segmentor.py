"""Losses weighted per pixel: what the weights do, in every family of heads, and in a short training."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from small_run import train, write_small_run
from tiny_generator import segmentor
from tiny_segmentors import AUXILIARY, FAMILIES, FCN, family
from torch import Tensor, nn

from mmsynth.models.weighted_segmentor import stack_weights
from mmsynth.registry import MODELS
from mmsynth.utils.checkpoint import read_checkpoint

SIDE = 32
WEIGHTED = dict(EncoderDecoder='mmsynth.WeightedEncoderDecoder',
                CascadeEncoderDecoder='mmsynth.WeightedCascadeEncoderDecoder')


def build(config: dict, *, weighted: bool = True) -> nn.Module:
    """A segmentor with fixed weights, without dropout, that normalises as in a test."""
    torch.manual_seed(0)
    kind = WEIGHTED[config['type']] if weighted else config['type']
    model = MODELS.build(config | dict(type=kind)) if weighted else MMSEG_MODELS.build(config)
    return model.eval()


def inputs() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def batch(*weights: Tensor | None, labels: Tensor | None = None) -> list[SegDataSample]:
    """Two samples with random labels, and weights where given."""
    if labels is None:
        labels = torch.randint(3, (2, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    samples = []
    for label, weight in zip(labels, weights or (None, None)):
        sample = SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=dict(img_shape=(SIDE, SIDE)))
        if weight is not None:
            sample.gt_pixel_weight = PixelData(data=weight[None])
        samples.append(sample)
    return samples


def values(model: nn.Module, samples: list[SegDataSample]) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(value) for name, value in model.loss(inputs(), samples).items() if 'loss' in name}


@pytest.mark.parametrize('name', FAMILIES)
def test_weights_act_in_every_family(name: str) -> None:
    plain, model = build(FAMILIES[name], weighted=False), build(FAMILIES[name])
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    expected = values(plain, batch())
    ones, half = torch.ones(SIDE, SIDE), torch.full((SIDE, SIDE), 0.5)
    assert values(model, batch()) == pytest.approx(expected, rel=1e-5)
    assert values(model, batch(ones, ones)) == pytest.approx(expected, rel=1e-5)
    assert values(model, batch(half, half)) == pytest.approx({k: v / 2 for k, v in expected.items()}, rel=1e-5)
    assert values(model, batch(torch.zeros(SIDE, SIDE), 0 * ones)) == dict.fromkeys(expected, 0.0)


def test_a_loss_is_the_weighted_sum_over_all_pixels() -> None:
    model = build(family(FCN))
    weights = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    samples = batch(*weights)
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples]).squeeze(1)
    with torch.no_grad():
        logits = nn.functional.interpolate(model._forward(inputs()), (SIDE, SIDE), mode='bilinear')
    expected = (weights * nn.functional.cross_entropy(logits, labels, reduction='none')).sum() / labels.numel()
    assert values(model, samples)['decode.loss_ce'] == pytest.approx(float(expected), rel=1e-4)


def test_samples_without_weights_count_in_full() -> None:
    model = build(family(FCN))
    weight = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    mixed = values(model, batch(weight, None))
    assert mixed == pytest.approx(values(model, batch(weight, torch.ones(SIDE, SIDE))), rel=1e-6)
    assert values(model, batch()) != pytest.approx(mixed, rel=1e-2)  # and nothing is left behind in the heads


def test_weight_zero_is_as_ignored_and_ignored_pixels_stay_so() -> None:
    model = build(family(FCN, auxiliary_head=AUXILIARY))
    labels = torch.randint(3, (2, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    ignored = labels.clone()
    ignored[:, :, :9] = 255
    weight = torch.ones(SIDE, SIDE)
    weight[:9] = 0
    without = values(model, batch(labels=ignored))
    assert values(model, batch(weight, weight, labels=labels)) == pytest.approx(without, rel=1e-5)
    assert values(model, batch(1 + weight * 0, 1 + weight * 0, labels=ignored)) == pytest.approx(without, rel=1e-5)


@pytest.mark.parametrize('changes', [
    dict(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    dict(loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.0, 1.0, 2.0])),
    dict(loss_decode=[dict(type='CrossEntropyLoss'), dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0)]),
    dict(sampler=dict(type='OHEMPixelSampler', thresh=0.5, min_kept=100)),
    dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
], ids=['sigmoid', 'class weights', 'two losses', 'OHEM', 'binary'])
def test_weights_act_in_these_losses(changes: dict) -> None:
    config = family(FCN | changes)
    plain, model = build(config, weighted=False), build(config)
    labels = torch.randint(changes.get('num_classes', 3), (2, 1, SIDE, SIDE),
                           generator=torch.Generator().manual_seed(2))
    ones = torch.ones(SIDE, SIDE)
    expected = values(plain, batch(labels=labels))
    assert values(model, batch(labels=labels)) == pytest.approx(expected, rel=1e-5)
    assert values(model, batch(ones, ones, labels=labels)) == pytest.approx(expected, rel=1e-5)
    quarter = values(model, batch(ones / 4, ones / 4, labels=labels))
    assert quarter == pytest.approx({name: value / 4 for name, value in expected.items()}, rel=1e-5)


def test_weights_are_padded_with_their_labels() -> None:
    small = torch.rand(20, 30, generator=torch.Generator().manual_seed(3))
    weights = stack_weights(batch(small, None))
    assert weights.shape == (2, SIDE, SIDE) and weights.dtype == torch.float32
    assert torch.equal(weights[0, :20, :30], small)
    assert weights[0].sum() == pytest.approx(float(small.sum())) and bool((weights[1] == 1).all())
    assert stack_weights(batch()) is None


@pytest.mark.parametrize('loss', ['DiceLoss', 'FocalLoss', 'LovaszLoss', 'TverskyLoss'])
def test_losses_that_cannot_weight_pixels_are_refused(loss: str) -> None:
    settings = dict(reduction='none') if loss == 'LovaszLoss' else {}
    with pytest.raises(ValueError, match=f'{loss} of FCNHead cannot weight pixels'):
        build(family(FCN | dict(loss_decode=dict(type=loss) | settings)))


@MMSEG_MODELS.register_module()
class OwnLoss(nn.Module):
    """A user's loss that takes weights per pixel, and says so."""

    weights_pixels, loss_name = True, 'loss_own'

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None,
                ignore_index: int = 255) -> Tensor:
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction='none')
        return (loss if weight is None else loss * weight).mean()


def test_a_loss_of_ones_own_may_say_that_it_weights_pixels() -> None:
    model = build(family(FCN | dict(loss_decode=dict(type='OwnLoss'))))
    ones = torch.ones(SIDE, SIDE)
    assert sum(values(model, batch(0 * ones, 0 * ones)).values()) < sum(values(model, batch(ones, ones)).values())


@pytest.mark.parametrize('name', ['decode_head', 'auxiliary_head'])
def test_a_head_that_takes_255_for_a_class_is_refused(name: str) -> None:
    heads = {'decode_head': FCN, 'auxiliary_head': AUXILIARY}
    heads[name] = heads[name] | dict(ignore_index=254)
    with pytest.raises(ValueError, match=f'`{name}.ignore_index` is 254'):
        build(family(heads['decode_head'], auxiliary_head=heads['auxiliary_head']))


@MMSEG_MODELS.register_module()
class OwnLossHead(FCNHead):
    """A head that, like mmseg's PointHead, computes its loss without asking its sampler."""

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        return dict(loss_ce=self.loss_decode(nn.functional.interpolate(seg_logits, labels.shape[1:]), labels))


def test_heads_that_leave_weights_out_are_named() -> None:
    model = build(family(FCN, auxiliary_head=AUXILIARY | dict(type='OwnLossHead')))
    ones = torch.ones(SIDE, SIDE)
    before = values(model, batch())  # without weights it trains as it is
    with pytest.raises(ValueError, match='OwnLossHead .*weights'):
        values(model, batch(ones, ones))
    assert values(model, batch()) == pytest.approx(before, rel=1e-6)


def test_too_large_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r'`gt_pixel_weight` \(32, 33\) .*\(32, 32\)'):
        build(segmentor()).loss(inputs(), batch(torch.ones(SIDE, SIDE + 1), None))


# ---- training
def weighted_config(folder: Path, pipeline: list[dict]) -> Path:
    """The small run's segmentor, with one line for the model and another pipeline; its masks get weight maps."""
    write_small_run(folder)
    (folder / 'data' / 'weights').mkdir()
    rng = np.random.default_rng(0)
    for mask in sorted((folder / 'data' / 'masks').iterdir()):
        weight = rng.integers(0, 256, np.asarray(Image.open(mask)).shape, dtype=np.uint8)
        Image.fromarray(weight).save(folder / 'data' / 'weights' / mask.name)
    cfg = Config.fromfile(folder / 'critic.py')
    cfg.custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
    cfg.model.type = 'mmsynth.WeightedEncoderDecoder'
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.dump(folder / 'weighted.py')
    return folder / 'weighted.py'


def test_two_iterations_through_the_runner(tmp_path: Path) -> None:
    config = weighted_config(tmp_path, [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='mmsynth.LoadPixelWeights'),
        dict(type='RandomCrop', crop_size=(12, 16)), dict(type='RandomFlip', prob=0.5),
        dict(type='mmsynth.PackWeightedSegInputs')])
    runner = train(config, tmp_path / 'work')
    lines = (tmp_path / 'work').rglob('scalars.json')
    losses = [json.loads(line)['loss'] for line in next(lines).read_text().splitlines()]
    assert len(losses) == 2 and all(np.isfinite(losses))
    plain = MMSEG_MODELS.build(Config.fromfile(tmp_path / 'critic.py').model)
    plain.load_state_dict(read_checkpoint(tmp_path / 'work' / 'iter_2.pth'))  # mmseg's own segmentor takes it
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(image), runner.model.eval()(image), atol=1e-5)
