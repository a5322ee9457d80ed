"""The null mask and the null reference: dropped in training, guided away from in sampling, in every control scheme."""
import pytest
import torch
from tiny_generator import TRUNK, images, samples, segmentor, todsynth
from tiny_tisynth import SEEDS, referenced, tisynth
from torch import Tensor

from mmsynth.guidance import CRFM, BestOfN, SegmentorCritic
from mmsynth.models import TISynth, TODSynth
from mmsynth.models.networks.mmdit import CONTROLS
from mmsynth.utils.labels import IGNORE_INDEX

MASKS = torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])


def latents_of(model: TODSynth | TISynth, rows: slice = slice(0, 4), masks: Tensor = MASKS, guidance=None) -> Tensor:
    given = referenced() if isinstance(model, TISynth) else samples()
    return model.sample_latents(given[rows], masks[rows], SEEDS[rows], guidance=guidance)[0]


@pytest.mark.parametrize('dropout', [0.0, 0.3, 1.0])
def test_a_share_of_the_masks_is_dropped(dropout: float) -> None:
    masks = torch.zeros(2000, 1, 1, dtype=torch.long)
    dropped = todsynth(mask_dropout=dropout)._drop_masks(masks, torch.Generator().manual_seed(0)) == IGNORE_INDEX
    assert float(dropped.float().mean()) == pytest.approx(dropout, abs=0.03)


@pytest.mark.parametrize('build, given', [(todsynth, samples), (tisynth, referenced)])
def test_a_training_without_dropout_draws_what_it_drew_before(build, given) -> None:
    """The masks' draw comes after the prompts', and only where masks are dropped."""

    def loss(**options) -> dict:
        torch.manual_seed(3)
        return build(**options).train().loss(images(), given())

    plain, dropped = loss(), loss(mask_dropout=1.0)
    [name] = plain
    torch.manual_seed(3)
    null = given()
    for sample in null:
        sample.gt_sem_seg.data.fill_(IGNORE_INDEX)
    assert plain[name] != dropped[name]
    assert torch.equal(plain[name], loss(mask_dropout=0.0)[name])


@pytest.mark.parametrize('control', CONTROLS)
def test_the_scale_is_a_dial_in_every_control_scheme(control: str) -> None:
    """At 0 the mask is left out: the same latents for any mask. At 1 nothing changes, bit by bit."""
    network = dict(type='mmsynth.MMDiT', trunk=TRUNK, mask_channels=3, control=control)
    model = todsynth(network=network, mask_dropout=0.1)
    plain = latents_of(model)
    assert torch.equal(latents_of(todsynth(network=network, mask_dropout=0.1, mask_guidance_scale=1.0)), plain)
    without = todsynth(network=network, mask_dropout=0.1, mask_guidance_scale=0.0)
    null = latents_of(model, masks=torch.full_like(MASKS, IGNORE_INDEX))
    torch.testing.assert_close(latents_of(without), null, atol=1e-4, rtol=1e-4)
    stronger = latents_of(todsynth(network=network, mask_dropout=0.1, mask_guidance_scale=2.0))
    assert (stronger - plain).abs().max() > 1e-3


@pytest.mark.parametrize('part', ['mask', 'reference'])
def test_so_it_is_in_tisynth(part: str) -> None:
    options = {f'{part}_dropout': 0.1}
    plain = latents_of(tisynth(**options))
    assert torch.equal(latents_of(tisynth(**options, **{f'{part}_guidance_scale': 1.0})), plain)
    without = tisynth(**options, **{f'{part}_guidance_scale': 0.0}, guidance_scale=1.0)
    first = latents_of(without)
    if part == 'mask':
        second = latents_of(without, masks=MASKS.flip(0))
    else:
        other = referenced()
        for sample in other:
            sample.reference.data = -sample.reference.data
        second = without.sample_latents(other, MASKS, SEEDS, guidance=None)[0]
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)
    assert (latents_of(tisynth(**options, **{f'{part}_guidance_scale': 2.0})) - plain).abs().max() > 1e-3


def test_outside_of_its_interval_it_is_off() -> None:
    plain = latents_of(todsynth(mask_dropout=0.1))
    never = todsynth(mask_dropout=0.1, mask_guidance_scale=3.0, mask_guidance_interval=(0.0, 1e-6))
    assert torch.equal(latents_of(never), plain)
    late = latents_of(todsynth(mask_dropout=0.1, mask_guidance_scale=3.0, mask_guidance_interval=(0.0, 0.9)))
    always = latents_of(todsynth(mask_dropout=0.1, mask_guidance_scale=3.0))
    assert not torch.equal(late, plain) and not torch.equal(late, always)


def test_the_batch_makes_no_difference() -> None:
    """With prompt and mask guidance, correction by a critic, and the choice among candidates."""
    torch.manual_seed(0)
    critic = SegmentorCritic(dict(model=segmentor()))
    model = todsynth(mask_dropout=0.1, mask_guidance_scale=1.5, guidance_scale=2.0)
    guidance = CRFM(critic, objective='mask')
    together = latents_of(model, guidance=guidance)
    alone = torch.cat([latents_of(model, slice(row, row + 1), guidance=guidance) for row in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    chosen = model.synthesize(samples(), SEEDS, guidance=BestOfN(critic, 2))
    assert all(sample.finite for sample in chosen)


class TestErrors:

    @pytest.mark.parametrize('options, name', [
        (dict(mask_dropout=1.5), '`mask_dropout`'),
        (dict(mask_guidance_scale=-0.5), '`mask_guidance_scale`'),
        (dict(mask_guidance_interval=(0.5, 0.2)), '`mask_guidance_interval`'),
        (dict(guidance_interval=(0.0, 1.5)), '`guidance_interval`'),
    ])
    def test_options_out_of_range(self, options: dict, name: str) -> None:
        for build in (todsynth, tisynth):
            with pytest.raises(ValueError, match=name):
                build(**options)

    @pytest.mark.parametrize('options, name', [
        (dict(reference_dropout=-1), '`reference_dropout`'),
        (dict(reference_guidance_scale=-1), '`reference_guidance_scale`'),
        (dict(reference_guidance_interval=(0.1, )), '`reference_guidance_interval`'),
    ])
    def test_of_the_reference(self, options: dict, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            tisynth(**options)

    def test_guidance_without_dropout_is_warned_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = []
        monkeypatch.setattr('mmsynth.models.generators.checks.print_log', lambda text, *_: said.append(text))
        todsynth(mask_guidance_scale=1.5, mask_dropout=0.1)
        todsynth(mask_guidance_scale=1.5)
        assert len(said) == 1 and '`mask_dropout`' in said[0]
