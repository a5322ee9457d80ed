"""PoolRefresher: a round is a function of plan, number and segmentor; what fails on a mask costs that mask."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from online_run import GUIDANCE, random_states
from small_run import CLASSES, SmallRun
from torch import nn

from mmsynth.filtering import ClassLosses
from mmsynth.guidance import SegmentorCritic
from mmsynth.models.encoders import PatchPCACodec
from mmsynth.online import refresher as module
from mmsynth.online.orders import Order
from mmsynth.online.plan import RefreshPlan
from mmsynth.online.refresher import PoolRefresher
from mmsynth.online.sample import Sample
from mmsynth.synthesis import build_dataset

FILTER = dict(num_images=3, margin=1.5, min_valid=0.05)


def plan(small: SmallRun, **changes: Any) -> RefreshPlan:
    options = dict(generator=dict(config=str(small.config_file), checkpoint=str(small.generator)), num_per_round=5)
    return RefreshPlan(**options | changes)


def refresher(small: SmallRun, share: tuple[int, int] = (0, 1), batch_size: int = 4, **changes: Any) -> PoolRefresher:
    real = Config.fromfile(small.critic_config_file).train_dataloader.dataset.to_dict()
    return PoolRefresher(plan(small, **changes), real=real, share=share, batch_size=batch_size)


def segmentor(small: SmallRun) -> nn.Module:
    """A segmentor in the middle of a training."""
    return SegmentorCritic(str(small.critic_config_file), str(small.critic)).segmentor.train().requires_grad_(True)


def described(sample: Sample) -> tuple:
    return sample.id, sample.image.tolist(), sample.mask.tolist(), json.dumps(sample.details, sort_keys=True)


def test_a_round_follows_from_plan_number_and_segmentor(small_run: SmallRun) -> None:
    model = segmentor(small_run)
    order, options = Order(3, segmentor=model), dict(guidance=GUIDANCE, filter=FILTER)
    # one by one: sums over batches of other sizes are rounded otherwise
    whole = refresher(small_run, batch_size=1, **options)(order)
    shares = [refresher(small_run, batch_size=1, share=(rank, 2), **options)(order) for rank in range(2)]
    torch.rand(7)
    joined = sorted((sample for share in shares for sample in share.samples), key=lambda sample: sample.id)
    assert [sample.id for sample in whole.samples] == [f'{number:08d}' for number in range(15, 20)]
    assert [described(sample) for sample in whole.samples] == [described(sample) for sample in joined]
    assert whole.facts['requested'] == 5 == sum(share.facts['requested'] for share in shares)
    assert whole.facts['filtered'] == 5 and whole.facts['guided_steps'] == 5
    assert all(sample.details['guidance']['name'] == 'CRFM' and sample.filtered is not None for sample in whole.samples)


def test_segmentor_and_randomness_are_left_as_found(small_run: SmallRun) -> None:
    model = segmentor(small_run)
    model.decode_head.eval()  # modes may differ inside
    paint = refresher(small_run, guidance=GUIDANCE, filter=FILTER)
    model.decode_head.conv_seg.weight.grad = torch.ones_like(model.decode_head.conv_seg.weight)

    def state() -> tuple:
        return ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()],
                [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
                {name: value.tolist() for name, value in model.state_dict().items()}, random_states(),
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.is_grad_enabled())

    before = state()
    paint(Order(0, segmentor=model))
    assert state() == before


def test_the_segmentor_as_it_is_makes_the_difference(small_run: SmallRun) -> None:
    model, paint = segmentor(small_run), refresher(small_run, guidance=GUIDANCE | dict(step_size=3.0))
    first = paint(Order(0, segmentor=model))
    with torch.no_grad():
        model.decode_head.conv_seg.weight.neg_()
    second = paint(Order(0, segmentor=model))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(first.samples, second.samples))


def test_uncertain_masks_ask_the_segmentor_of_the_round(small_run: SmallRun) -> None:
    lines = [dict(source=f'masks/{name}.png', target=f'images/{name}.png') for name in 'abcd']
    (small_run.folder / 'data' / 'with_images.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    inner = small_run.config().synthesis.dataset.to_dict() | dict(ann_file='with_images.jsonl')
    masks = dict(type='mmsynth.UncertainMasks', critic='runner', share=0.5, dataset=inner)
    paint, model = refresher(small_run, masks=masks, num_per_round=2), segmentor(small_run)
    assert paint.needs_segmentor
    painted = paint(Order(0, segmentor=model)).samples
    expected = masks | dict(critic=SegmentorCritic(segmentor=model))
    chosen = build_dataset(expected)
    assert {sample.details['source_mask'] for sample in painted} == {
        str(chosen.get_data_info(index)['seg_map_path']) for index in range(2)}
    assert all(sample.details['mask_origin'] for sample in painted)


def test_a_segmentor_on_another_device_is_copied_there(small_run: SmallRun) -> None:
    model, paint = segmentor(small_run), refresher(small_run, guidance=GUIDANCE)
    assert paint._bring(model) is model
    paint._device = 'meta'
    copied = paint._bring(model)
    assert {value.device.type for value in copied.parameters()} == {'meta'}
    assert {value.device.type for value in model.parameters()} == {'cpu'}


# --------------------------------------------------------------------------------------------------------------- faults
def test_a_generator_that_raises_on_one_mask_costs_that_mask(small_run: SmallRun,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def generate_batch(generator: nn.Module, batch: Any, **options: Any) -> list:
        if any(request.id == '00000002' for request, _ in batch):
            raise RuntimeError('no image\nfor this mask')
        return original(generator, batch, **options)

    expected, original = refresher(small_run)(Order(0)), module.generate_batch
    monkeypatch.setattr(module, 'generate_batch', generate_batch)
    painted = refresher(small_run)(Order(0))
    assert [described(sample) for sample in painted.samples] == [
        described(sample) for sample in expected.samples if sample.id != '00000002']
    assert painted.facts['failed'] == {'RuntimeError: no image for this mask': 1}


def test_a_mask_that_cannot_be_loaded_costs_that_mask(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_sample(dataset: Any, request: Any) -> Any:
        if request.id in ('00000001', '00000002'):
            raise OSError('truncated')
        return original(dataset, request)

    original = module.load_sample
    monkeypatch.setattr(module, 'load_sample', load_sample)
    painted = refresher(small_run)(Order(0))
    assert [sample.id for sample in painted.samples] == ['00000000', '00000003', '00000004']
    assert painted.facts['failed'] == {'OSError: truncated': 2}


def test_images_with_values_that_are_no_numbers_are_left_out(small_run: SmallRun,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(codec: PatchPCACodec, latents: torch.Tensor) -> torch.Tensor:
        images = original(codec, latents).clone()
        images[0, 1, 2, 3] = torch.nan
        return images

    original = PatchPCACodec.decode
    monkeypatch.setattr(PatchPCACodec, 'decode', decode)
    painted = refresher(small_run, batch_size=2, filter=FILTER)(Order(0, segmentor=segmentor(small_run)))
    assert [sample.id for sample in painted.samples] == ['00000001', '00000003']
    assert painted.facts['not_finite'] == 3 and painted.facts['filtered'] == 2


def test_what_the_filter_drops_is_left_out_and_counted(small_run: SmallRun) -> None:
    strict = dict(num_images=3, margin=1e-6, min_valid=1.0)
    painted = refresher(small_run, filter=strict)(Order(0, segmentor=segmentor(small_run)))
    assert not painted.samples and painted.facts['filtered'] == 5 and painted.facts['filter_kept'] == 0


def test_fixed_class_losses_decide_whoever_reads(small_run: SmallRun, tmp_path: Path) -> None:
    model = segmentor(small_run)
    for mean, kept in ((1e9, 5), (1e-9, 0)):
        path = tmp_path / f'{mean}.json'
        ClassLosses(CLASSES, (mean, ) * 3, (9, ) * 3, dict(segmentor_sha256='of another')).write(path)
        painted = refresher(small_run, filter=dict(class_losses=str(path)))(Order(0, segmentor=model))
        assert len(painted.samples) == kept


def test_an_order_without_the_segmentor_is_refused(small_run: SmallRun) -> None:
    with pytest.raises(ValueError, match='round 4 needs the segmentor in training'):
        refresher(small_run, guidance=GUIDANCE)(Order(4))


# ------------------------------------------------------------------------------------------------------------- messages
@pytest.mark.parametrize('options, messages', [
    (dict(num_per_round=0), ['`num_per_round` must be at least 1, got 0']),
    (dict(generator=dict(config='c.py')), ['`generator` must be dict(config=…, checkpoint=…), got the keys']),
    (dict(critic='teacher'), ["`critic` must be 'runner', 'ema', the config of a critic, or None, got 'teacher'"]),
    (dict(guidance=GUIDANCE | dict(critic={})), ['`guidance.critic` has its own place here']),
    (dict(guidance=GUIDANCE, critic=None), ['`guidance` needs a `critic`']),
    (dict(critic=dict(type='mmsynth.SegmentorCritic')), ['`critic` has no effect without `guidance`']),
    (dict(filter=dict(margn=1)), ['`filter` does not know margn; it takes segmentor, class_losses, num_images']),
    (dict(filter=dict(sibling_vote='median')), ['`filter.sibling_vote` needs several images of one mask']),
    (dict(filter=dict(class_losses='x', num_images=3)), ['`filter.num_images` has no effect beside']),
    (dict(num_per_round=0, critic='x', filter=dict(num_images=0)), [
        '`num_per_round`', '`critic`', '`filter.num_images` must be at least 1, got 0']),
])
def test_wrong_options_are_named_before_anything_is_built(options: dict, messages: list[str]) -> None:
    with pytest.raises(ValueError, match='online synthesis: ') as caught:
        RefreshPlan(**dict(generator=dict(config='no.py', checkpoint='no.pth')) | options)
    assert all(message in str(caught.value) for message in messages)


def test_what_is_missing_is_named(small_run: SmallRun) -> None:
    with pytest.raises(FileNotFoundError, match='`generator.checkpoint` no.pth does not exist; train the generator'):
        plan(small_run, generator=dict(config=str(small_run.config_file), checkpoint='no.pth'))
    cfg = small_run.config().to_dict()
    del cfg['synthesis']
    with pytest.raises(ValueError, match='`masks` is not given, and the config of the generator has no'):
        plan(small_run, generator=dict(config=cfg, checkpoint=str(small_run.generator)))
    with pytest.raises(ValueError, match='there is no real data set'):
        PoolRefresher(plan(small_run, filter=FILTER))
    with pytest.raises(ValueError, match='`batch_size` must be at least 1, got 0'):
        PoolRefresher(plan(small_run), batch_size=0)


def test_settings_tell_plans_apart(small_run: SmallRun) -> None:
    plans = [plan(small_run, **changes).settings for changes in (
        {}, dict(seed=1), dict(num_per_round=6), dict(guidance=GUIDANCE), dict(guidance=GUIDANCE, critic='ema'),
        dict(filter=FILTER), dict(masks=small_run.config().synthesis.dataset.to_dict() | dict(max_refetch=3)))]
    assert all(a != b for place, a in enumerate(plans) for b in plans[:place])
    assert plan(small_run).settings == plans[0]
