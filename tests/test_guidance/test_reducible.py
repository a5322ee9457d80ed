"""The reducible loss in closed form, what guidance by it does, and the message of each mistake."""
import pytest
import torch
from toy_critic import LatentReader, ToyCritic, batch, decode, step_at

from mmsynth.guidance import CRFM, ReducibleLossCritic
from mmsynth.registry import MODELS


def critic(weight: float = 1.0) -> ReducibleLossCritic:
    return ReducibleLossCritic(ToyCritic(seed=1), ToyCritic(seed=2), weight)


@pytest.mark.parametrize('weight', [0.0, 0.5, 1.0])
def test_it_is_the_teacher_s_loss_less_the_learner_s(weight: float) -> None:
    _, latents, masks = batch()
    masks[0, :2] = 255
    images = decode(latents) / 2 + 0.5
    output, teacher, learner = (one(images, masks) for one in (critic(weight), ToyCritic(seed=1), ToyCritic(seed=2)))
    torch.testing.assert_close(output.loss, teacher.loss - weight * learner.loss)
    assert output.loss[0, :2].eq(0).all()
    assert torch.equal(output.wrong, teacher.wrong) and torch.equal(output.logits, teacher.logits)
    assert torch.equal(critic(weight).predict_logits(images), teacher.logits)


def test_guidance_widens_what_lies_between_them() -> None:
    prediction, latents, masks = batch()
    step = step_at(latents)
    result, _ = CRFM(critic(), objective='mask', step_size=0.3).correct(prediction, step, decode, masks)

    def gap(values: torch.Tensor) -> torch.Tensor:
        images = decode(step.clean_estimate(values)) / 2 + 0.5
        return ToyCritic(seed=2)(images, masks).mean_loss - ToyCritic(seed=1)(images, masks).mean_loss

    assert (gap(result) > gap(prediction)).all()


def test_alike_they_ask_for_nothing() -> None:
    prediction, latents, masks = batch()
    same = ReducibleLossCritic(ToyCritic(), ToyCritic())
    result, _ = CRFM(same, objective='mask').correct(prediction, step_at(latents), decode, masks)
    assert torch.equal(result, prediction)


@pytest.mark.parametrize('settings, message', [
    (dict(teacher=ToyCritic(), learner=ToyCritic(), weight=-1), '`weight`'),
    (dict(teacher=ToyCritic(), learner=LatentReader()), '`teacher` and `learner` must agree in `input_type`'),
])
def test_mistakes(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmsynth.ReducibleLossCritic', **settings))


def test_both_stay_frozen() -> None:
    assert not any(module.training for module in critic().train().modules())
