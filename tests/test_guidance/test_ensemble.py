"""Several critics as one: weighted means in closed form, and what must agree."""
import pytest
import torch
from tiny_generator import segmentor
from torch import nn
from toy_critic import CHANNELS, LatentReader, ToyCritic, batch, decode, step_at

from mmsynth.guidance import CRFM, Critic, CriticEnsemble, SegmentorCritic
from mmsynth.registry import MODELS


def member(**settings) -> ToyCritic:
    """A critic with some attributes changed."""
    critic = ToyCritic()
    for name, value in settings.items():
        setattr(critic, name, value)
    return critic


@pytest.mark.parametrize('weights, shares', [(None, [0.5, 0.5]), ([1, 3], [0.25, 0.75]), ([0.2, 0.2], [0.5, 0.5])])
def test_loss_and_prediction_are_weighted_means(weights: list[float] | None, shares: list[float]) -> None:
    critics, (_, latents, masks) = [ToyCritic(seed=1), ToyCritic(seed=2)], batch()
    masks[0, :2] = 255
    images = decode(latents) / 2 + 0.5
    output = CriticEnsemble(critics, weights)(images, masks)
    outputs = [critic(images, masks) for critic in critics]
    predictions = [critic.predict_logits(images) for critic in critics]
    torch.testing.assert_close(output.loss, sum(share * v.loss for share, v in zip(shares, outputs)))
    mean = sum(share * logits.softmax(1) for share, logits in zip(shares, predictions))
    assert torch.equal(output.wrong, (mean.argmax(1) != masks) & (masks != 255))
    assert torch.equal(output.valid, masks != 255) and output.loss[0, :2].eq(0).all()
    torch.testing.assert_close(CriticEnsemble(critics, weights).predict_logits(images).exp(), mean)
    assert any(not torch.equal(output.wrong, v.wrong) for v in outputs)


def test_one_critic_and_twice_the_same_are_that_critic() -> None:
    _, latents, masks = batch()
    images = decode(latents) / 2 + 0.5
    alone = ToyCritic()(images, masks)
    for ensemble in (CriticEnsemble([ToyCritic()]), CriticEnsemble([ToyCritic(), ToyCritic()], [0.3, 0.7])):
        output = ensemble(images, masks)
        torch.testing.assert_close(output.loss, alone.loss)
        assert torch.equal(output.wrong, alone.wrong)


def test_it_is_where_its_critics_are() -> None:
    """Also if they borrow their segmentor, whose tensors are not theirs."""
    borrowed = SegmentorCritic(segmentor=MODELS.build(segmentor()).to('meta'))
    assert CriticEnsemble([borrowed]).device == torch.device('meta')


def test_it_guides_by_the_mean_of_the_gradients() -> None:
    prediction, latents, masks = batch()
    critics = [ToyCritic(seed=1), ToyCritic(seed=2)]
    changes = [CRFM(critic, norm='raw', objective='mask', step_size=1, trust_region=None).correct(
        prediction, step_at(latents), decode, masks)[0] - prediction for critic in (*critics, CriticEnsemble(critics))]
    torch.testing.assert_close(changes[2], (changes[0] + changes[1]) / 2, atol=1e-6, rtol=1e-4)


def test_it_is_built_from_configs_and_stays_frozen() -> None:
    config = dict(type='mmsynth.SegmentorCritic', config=dict(model=segmentor()))
    ensemble = MODELS.build(dict(type='mmsynth.CriticEnsemble', critics=[config, config]))
    nn.ModuleList([ensemble]).train()
    assert not any(module.training for module in ensemble.modules())
    assert ensemble.num_classes == 3 and ensemble.ignore_index == 255 and ensemble.input_type == 'images'
    with pytest.raises(ValueError, match='3 classes.* 4'):
        ensemble.check_num_classes(4)


def test_borrowed_segmentors_are_all_left_as_found() -> None:
    models = [SegmentorCritic(dict(model=segmentor())).segmentor.train().requires_grad_(True) for _ in range(2)]
    ensemble, (prediction, latents, masks) = CriticEnsemble([SegmentorCritic(segmentor=m) for m in models]), batch()
    CRFM(ensemble).correct(prediction, step_at(latents), decode, masks)
    assert all(module.training for model in models for module in model.modules())
    assert all(parameter.requires_grad for model in models for parameter in model.parameters())


class TestErrors:

    @pytest.mark.parametrize('critics, message', [
        ([member(), member(num_classes=4)], '`critics` must agree in `num_classes`, got 3, 4 in their order'),
        ([member(ignore_index=0), member()], '`critics` must agree in `ignore_index`, got 0, 255 in their order'),
        ([member(), LatentReader()], '`critics` must agree in `input_type`, got images, latents in their order'),
    ])
    def test_critics_that_do_not_fit_each_other(self, critics: list[Critic], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CriticEnsemble(critics)

    @pytest.mark.parametrize('count, weights', [(0, None), (2, [1.0]), (2, [1.0, 0.0]), (2, [1.0, float('nan')])])
    def test_weights_that_do_not_fit(self, count: int, weights: list[float] | None) -> None:
        with pytest.raises(ValueError, match=f'one positive number for each, got {count} critics and the weights'):
            CriticEnsemble([ToyCritic() for _ in range(count)], weights)

    def test_every_critic_s_latents_are_checked(self) -> None:
        ensemble = CriticEnsemble([LatentReader(), LatentReader()])
        ensemble.check_latents(CHANNELS, 2)
        with pytest.raises(ValueError, match='LatentReader reads 4 channels'):
            ensemble.check_latents(CHANNELS, 8)
