"""A critic that looks several times: what a pointwise critic sees in any view, fixed views, and mistakes."""
import pytest
import torch
from toy_critic import LatentReader, ToyCritic, batch, decode, step_at

from mmsynth.guidance import CRFM, AugmentedCritic
from mmsynth.registry import MODELS


def images_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    _, latents, masks = batch()
    return decode(latents) / 2 + 0.5, masks


def test_a_critic_that_sees_single_pixels_finds_the_same_in_every_view() -> None:
    """Flips, turns and shifts are undone; only pixels that were moved out of the image are those of the edge."""
    images, masks = images_and_masks()
    alone, several = ToyCritic(1)(images, masks), AugmentedCritic(ToyCritic(1), looks=8, max_shift=0)(images, masks)
    torch.testing.assert_close(several.loss, alone.loss)
    assert torch.equal(several.wrong, alone.wrong) and torch.equal(several.valid, alone.valid)
    shifted = AugmentedCritic(ToyCritic(1), looks=8, max_shift=2)(images, masks)
    torch.testing.assert_close(shifted.loss[:, 2:-2, 2:-2], alone.loss[:, 2:-2, 2:-2])
    assert not torch.allclose(shifted.loss, alone.loss)


def test_one_look_is_the_critic_itself() -> None:
    images, masks = images_and_masks()
    once = AugmentedCritic(ToyCritic(), looks=1)
    torch.testing.assert_close(once(images, masks).loss, ToyCritic()(images, masks).loss)


@pytest.mark.parametrize('settings', [dict(), dict(noise_std=0.1)])
def test_it_is_a_mean_over_views_that_differ_and_do_not_depend_on_the_batch(settings: dict) -> None:
    images, masks = images_and_masks()
    critic = AugmentedCritic(ToyCritic(), looks=4, **settings)
    views = critic.predict_all(images)
    assert not any(torch.allclose(view, views[0]) for view in views[1:])
    torch.testing.assert_close(critic.predict_logits(images).exp(), sum(view.softmax(1) for view in views) / 4)
    alone = torch.cat([critic(images[row:row + 1], masks[row:row + 1]).loss for row in range(2)])
    torch.testing.assert_close(alone, critic(images, masks).loss)


def test_it_guides() -> None:
    prediction, latents, masks = batch()
    guidance = MODELS.build(dict(type='mmsynth.CRFM', critic=AugmentedCritic(ToyCritic()), step_size=0.3,
                                 measure_after=True))
    _, records = guidance.correct(prediction, step_at(latents), decode, masks)
    assert all(record['loss_after'] < record['loss_before'] for record in records)


def test_images_that_are_not_square_are_turned_by_halves() -> None:
    images = torch.rand(1, 3, 8, 12)
    assert AugmentedCritic(ToyCritic(), looks=6).predict_logits(images).shape == (1, 3, 8, 12)


@pytest.mark.parametrize('settings, message', [
    (dict(critic=ToyCritic(), looks=0), '`looks`'),
    (dict(critic=ToyCritic(), max_shift=-1), '`max_shift`'),
    (dict(critic=LatentReader()), '`critic`.*latents'),
])
def test_mistakes(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmsynth.AugmentedCritic', **settings))


def test_the_critic_stays_frozen_and_is_where_it_was() -> None:
    critic = AugmentedCritic(ToyCritic()).train()
    assert not critic.training and critic.device == torch.device('cpu') and critic.num_classes == 3
    assert isinstance(CRFM(critic).critic, AugmentedCritic)
