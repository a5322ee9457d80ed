"""RoundSynthesizer: a round is a function of settings, number and segmentor; an error of a mask costs that mask."""
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
from toy_critic import ToyCritic

from mmsynth.filtering import ClassLosses
from mmsynth.guidance import SegmentorCritic
from mmsynth.models.encoders import PatchPCACodec
from mmsynth.online import synthesizer as module
from mmsynth.online.request import SynthesisRequest
from mmsynth.online.sample import Sample
from mmsynth.online.settings import RoundSettings
from mmsynth.online.synthesizer import RoundFilter, RoundSynthesizer
from mmsynth.synthesis import build_dataset

FILTER = dict(num_images=3, margin=1.5, min_valid=0.05)


def settings(small: SmallRun, **changes: Any) -> RoundSettings:
    options = dict(generator=dict(config=str(small.config_file), checkpoint=str(small.generator)), num_per_round=5)
    return RoundSettings(**options | changes)


def synthesizer(small: SmallRun, share: tuple[int, int] = (0, 1), batch_size: int = 4,
                **changes: Any) -> RoundSynthesizer:
    real = Config.fromfile(small.critic_config_file).train_dataloader.dataset.to_dict()
    return RoundSynthesizer(settings(small, **changes), real=real, share=share, batch_size=batch_size)


def segmentor(small: SmallRun) -> nn.Module:
    """A segmentor in the middle of a training."""
    return SegmentorCritic(str(small.critic_config_file), str(small.critic)).segmentor.train().requires_grad_(True)


def described(sample: Sample) -> tuple:
    return sample.id, sample.image.tolist(), sample.mask.tolist(), json.dumps(sample.details, sort_keys=True)


def test_a_round_follows_from_settings_number_and_segmentor(small_run: SmallRun) -> None:
    model = segmentor(small_run)
    request, options = SynthesisRequest(3, segmentor=model), dict(guidance=GUIDANCE, filter=FILTER)
    # one by one: sums over batches of other sizes are rounded otherwise
    whole = synthesizer(small_run, batch_size=1, **options)(request)
    shares = [synthesizer(small_run, batch_size=1, share=(rank, 2), **options)(request) for rank in range(2)]
    torch.rand(7)
    joined = sorted((sample for share in shares for sample in share.samples), key=lambda sample: sample.id)
    assert [sample.id for sample in whole.samples] == [f'{number:08d}' for number in range(15, 20)]
    assert [described(sample) for sample in whole.samples] == [described(sample) for sample in joined]
    assert whole.statistics['requested'] == 5 == sum(share.statistics['requested'] for share in shares)
    assert whole.statistics['filtered'] == 5 and whole.statistics['guided_steps'] == 5
    assert all(sample.details['guidance']['name'] == 'CRFM' and sample.filtered is not None for sample in whole.samples)


def test_segmentor_and_randomness_are_left_as_found(small_run: SmallRun) -> None:
    model = segmentor(small_run)
    model.decode_head.eval()  # modes may differ inside
    synthesize = synthesizer(small_run, guidance=GUIDANCE, filter=FILTER)
    model.decode_head.conv_seg.weight.grad = torch.ones_like(model.decode_head.conv_seg.weight)

    def state() -> tuple:
        return ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()],
                [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
                {name: value.tolist() for name, value in model.state_dict().items()}, random_states(),
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.is_grad_enabled())

    before = state()
    synthesize(SynthesisRequest(0, segmentor=model))
    assert state() == before


def test_the_segmentor_as_it_is_makes_the_difference(small_run: SmallRun) -> None:
    model, synthesize = segmentor(small_run), synthesizer(small_run, guidance=GUIDANCE | dict(step_size=3.0))
    first = synthesize(SynthesisRequest(0, segmentor=model))
    with torch.no_grad():
        model.decode_head.conv_seg.weight.neg_()
    second = synthesize(SynthesisRequest(0, segmentor=model))
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(first.samples, second.samples))


def test_uncertain_masks_ask_the_segmentor_of_the_round(small_run: SmallRun) -> None:
    lines = [dict(source=f'masks/{name}.png', target=f'images/{name}.png') for name in 'abcd']
    (small_run.folder / 'data' / 'with_images.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    inner = small_run.config().synthesis.dataset.to_dict() | dict(ann_file='with_images.jsonl')
    masks = dict(type='mmsynth.UncertainMasks', critic='runner', share=0.5, dataset=inner)
    synthesize, model = synthesizer(small_run, masks=masks, num_per_round=2), segmentor(small_run)
    assert synthesize.settings.needs_segmentor
    result = synthesize(SynthesisRequest(0, segmentor=model)).samples
    expected = masks | dict(critic=SegmentorCritic(segmentor=model))
    chosen = build_dataset(expected)
    assert {sample.details['source_mask'] for sample in result} == {
        str(chosen.get_data_info(index)['seg_map_path']) for index in range(2)}
    assert all(sample.details['mask_origin'] for sample in result)


def test_a_segmentor_on_another_device_is_copied_there(small_run: SmallRun) -> None:
    model, synthesize = segmentor(small_run), synthesizer(small_run, guidance=GUIDANCE)
    assert synthesize._on_device(model) is model
    synthesize._device = 'meta'
    copied = synthesize._on_device(model)
    assert {value.device.type for value in copied.parameters()} == {'meta'}
    assert {value.device.type for value in model.parameters()} == {'cpu'}


# --------------------------------------------------------------------------------------------------------------- faults
def test_a_generator_that_raises_on_one_mask_costs_that_mask(small_run: SmallRun,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def generate_batch(generator: nn.Module, batch: Any, **options: Any) -> list:
        if any(request.id == '00000002' for request, _ in batch):
            raise RuntimeError('no image\nfor this mask')
        return original(generator, batch, **options)

    expected, original = synthesizer(small_run)(SynthesisRequest(0)), module.generate_batch
    monkeypatch.setattr(module, 'generate_batch', generate_batch)
    result = synthesizer(small_run)(SynthesisRequest(0))
    assert [described(sample) for sample in result.samples] == [
        described(sample) for sample in expected.samples if sample.id != '00000002']
    assert result.statistics['failed'] == {'RuntimeError: no image for this mask': 1}


def test_a_mask_that_cannot_be_loaded_costs_that_mask(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_sample(dataset: Any, request: Any) -> Any:
        if request.id in ('00000001', '00000002'):
            raise OSError('truncated')
        return original(dataset, request)

    original = module.load_sample
    monkeypatch.setattr(module, 'load_sample', load_sample)
    result = synthesizer(small_run)(SynthesisRequest(0))
    assert [sample.id for sample in result.samples] == ['00000000', '00000003', '00000004']
    assert result.statistics['failed'] == {'OSError: truncated': 2}


def test_images_that_are_not_finite_are_left_out(small_run: SmallRun,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(codec: PatchPCACodec, latents: torch.Tensor) -> torch.Tensor:
        images = original(codec, latents).clone()
        images[0, 1, 2, 3] = torch.nan
        return images

    original = PatchPCACodec.decode
    monkeypatch.setattr(PatchPCACodec, 'decode', decode)
    result = synthesizer(small_run, batch_size=2, filter=FILTER)(SynthesisRequest(0, segmentor=segmentor(small_run)))
    assert [sample.id for sample in result.samples] == ['00000001', '00000003']
    assert result.statistics['not_finite'] == 3 and result.statistics['filtered'] == 2


def test_what_the_filter_drops_is_left_out_and_counted(small_run: SmallRun) -> None:
    strict = dict(num_images=3, margin=1e-6, min_valid=1.0)
    result = synthesizer(small_run, filter=strict)(SynthesisRequest(0, segmentor=segmentor(small_run)))
    assert not result.samples and result.statistics['filtered'] == 5 and result.statistics['filter_kept'] == 0


def test_fixed_class_losses_decide_for_any_segmentor(small_run: SmallRun, tmp_path: Path) -> None:
    model = segmentor(small_run)
    for mean, kept in ((1e9, 5), (1e-9, 0)):
        path = tmp_path / f'{mean}.json'
        ClassLosses(CLASSES, (mean, ) * 3, (9, ) * 3, dict(segmentor_sha256='of another')).write(path)
        result = synthesizer(small_run, filter=dict(class_losses=str(path)))(SynthesisRequest(0, segmentor=model))
        assert len(result.samples) == kept


def test_any_critic_of_images_filters(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    critic, real = ToyCritic(), Config.fromfile(small_run.critic_config_file).train_dataloader.dataset.to_dict()
    losses = RoundFilter(dict(num_images=2), real, seed=0)._measure(0, critic, 'cpu')
    assert losses.class_names == CLASSES and any(losses.pixels)
    critic.input_type = 'latents'
    monkeypatch.setattr(module.MODELS, 'build', lambda cfg: critic)
    with pytest.raises(ValueError, match='`filter.segmentor`'):
        RoundFilter(dict(segmentor=dict(type='mmsynth.LatentCritic')), real, seed=0)


# ------------------------------------------------------------------------------------------------------------- messages
@pytest.mark.parametrize('options, names', [
    (dict(num_per_round=0), ['`num_per_round`']),
    (dict(generator=dict(config='c.py')), ['`generator`']),
    (dict(critic='teacher'), ['`critic`', "'teacher'"]),
    (dict(guidance=GUIDANCE | dict(critic={})), ['`guidance.critic`']),
    (dict(guidance=GUIDANCE, critic=None), ['`guidance` needs a `critic`']),
    (dict(critic=dict(type='mmsynth.SegmentorCritic')), ['`critic`', '`guidance`']),
    (dict(filter=dict(margn=1)), ['`filter`', 'margn', 'num_images']),
    (dict(filter=dict(sibling_vote='median')), ['`filter.sibling_vote`']),
    (dict(filter=dict(class_losses='x', num_images=3)), ['`filter.num_images`', '`filter.class_losses`']),
    (dict(num_per_round=0, critic='x', filter=dict(num_images=0)), [
        '`num_per_round`', '`critic`', '`filter.num_images`']),
])
def test_wrong_options_are_named_before_anything_is_built(options: dict, names: list[str]) -> None:
    with pytest.raises(ValueError, match='online synthesis: ') as caught:
        RoundSettings(**dict(generator=dict(config='no.py', checkpoint='no.pth')) | options)
    assert all(name in str(caught.value) for name in names)


def test_what_is_missing_is_named(small_run: SmallRun) -> None:
    with pytest.raises(FileNotFoundError, match='`generator.checkpoint` no.pth'):
        settings(small_run, generator=dict(config=str(small_run.config_file), checkpoint='no.pth'))
    cfg = small_run.config().to_dict()
    del cfg['synthesis']
    with pytest.raises(ValueError, match='`masks` is not given'):
        settings(small_run, generator=dict(config=cfg, checkpoint=str(small_run.generator)))
    for options in (FILTER, dict(class_losses=None)):
        with pytest.raises(ValueError, match='there is no real data set'):
            RoundSynthesizer(settings(small_run, filter=options))


def test_the_pools_settings_tell_runs_apart(small_run: SmallRun) -> None:
    pools = [settings(small_run, **changes).pool for changes in (
        {}, dict(seed=1), dict(num_per_round=6), dict(guidance=GUIDANCE), dict(guidance=GUIDANCE, critic='ema'),
        dict(filter=FILTER), dict(masks=small_run.config().synthesis.dataset.to_dict() | dict(max_refetch=3)))]
    assert all(a != b for place, a in enumerate(pools) for b in pools[:place])
    assert settings(small_run).pool == pools[0]
