"""CRFM at the edges: broken gradients, no signal left, several corrections, and the released rule in parts."""
import math

import pytest
import torch
from torch import Tensor
from toy_critic import CELLS, CHANNELS, PIXELS, ToyCritic, batch, decode, misread_loss, step_at

from mmsynth.guidance import CRFM, Critic, CriticOutput
from mmsynth.sampling import SamplingStep


class Slope(Critic):
    """Its loss is linear in the image, so that every gradient of a run is the same; all pixels count and are wrong."""

    num_classes, ignore_index = 3, 255

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        valid = masks != 255
        return CriticOutput(images.sum(1) * valid, valid, valid)


class Cliff(Slope):
    """Its loss has no bound in row 1, nor a finite gradient."""

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        output = super().forward(images, masks)
        return CriticOutput(output.loss * torch.tensor([1.0, math.inf])[:, None, None], output.wrong, output.valid)


class Fickle(ToyCritic):
    """Breaks row 1 from its second judgement on."""

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        output = super().forward(images, masks)
        self.broken = (1, )
        return output


def relative(change: Tensor, start: Tensor) -> list[float]:
    return (change.flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)).tolist()


class TestSeveralCorrections:

    @pytest.mark.parametrize('count', [1, 2, 3, 6])
    def test_each_is_a_fraction_of_the_first_norm_and_their_sum_is_bounded(self, count: int) -> None:
        """Along one direction they add up to ``count * step_size``, cut at the trust region, whatever ‖v‖ became."""
        prediction, latents, masks = batch()
        guidance = CRFM(Slope(), step_size=0.2, trust_region=0.5, num_rectified=count)
        result, records = guidance.correct(prediction, step_at(latents), decode, masks)
        expected = pytest.approx([min(0.2 * count, 0.5)] * 2, rel=1e-4)
        assert relative(result - prediction, prediction) == expected
        assert [record['relative_change'] for record in records] == expected

    def test_one_that_loses_its_gradient_half_way_keeps_none_of_its_corrections(self) -> None:
        prediction, latents, masks = batch()
        result, records = CRFM(Fickle(), num_rectified=3).correct(prediction, step_at(latents), decode, masks)
        healthy, _ = CRFM(ToyCritic(), num_rectified=3).correct(prediction, step_at(latents), decode, masks)
        assert torch.equal(result[1], prediction[1])
        torch.testing.assert_close(result[0], healthy[0], atol=1e-6, rtol=1e-5)
        assert [(record['skipped'], record['relative_change'] > 0) for record in records] == [(0, True), (1, False)]


class TestBrokenSamples:

    @pytest.mark.parametrize('settings', [dict(), dict(norm='l2'), dict(norm='raw'), dict(norm='raw', legacy=True)],
                             ids=str)
    @pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
    def test_a_spoilt_latent_spoils_no_other_sample(self, settings: dict, value: float) -> None:
        prediction, latents, masks = batch(3)
        guidance = CRFM(ToyCritic(), objective='mask', **settings)
        healthy, _ = guidance.correct(prediction, step_at(latents), decode, masks)
        spoilt = latents.clone()
        spoilt[1, 0] = value
        result, records = guidance.correct(prediction, step_at(spoilt), decode, masks)
        torch.testing.assert_close(result[[0, 2]], healthy[[0, 2]])
        assert torch.isfinite(result[1]).all() and torch.isfinite(result).all()
        assert records[0]['skipped'] == records[2]['skipped'] == 0

    @pytest.mark.parametrize('legacy', [False, True])
    def test_a_gradient_that_is_not_finite_leaves_its_sample_even_to_the_clamp(self, legacy: bool) -> None:
        prediction, latents, masks = batch()
        guidance = CRFM(ToyCritic(broken=(1, )), norm='raw', legacy=legacy)
        result, records = guidance.correct(prediction, step_at(latents), decode, masks)
        assert torch.equal(result[1], prediction[1]) and records[1]['skipped'] == 1
        assert math.isnan(records[1]['loss_before']) and records[1]['relative_change'] == 0

    def test_the_clamp_does_not_hide_an_infinite_gradient(self) -> None:
        """The release's clamp would make -1 or 1 of it, as if that were a correction."""
        prediction, latents, masks = batch()
        result, records = CRFM(Cliff(), norm='raw', legacy=True).correct(prediction, step_at(latents), decode, masks)
        assert torch.equal(result[1], prediction[1]) and not torch.equal(result[0], prediction[0])
        assert [record['skipped'] for record in records] == [0, 1]

    def test_a_step_beyond_all_numbers_is_not_taken(self) -> None:
        prediction, latents, masks = batch()
        guidance = CRFM(Slope(), norm='raw', step_size=1e300, trust_region=None)
        result, records = guidance.correct(prediction, step_at(latents), decode, masks)
        assert torch.equal(result, prediction) and [record['skipped'] for record in records] == [1, 1]

    def test_a_prediction_of_nothing_stays_nothing(self) -> None:
        """A fraction of a norm of 0 is 0; no division by it."""
        _, latents, masks = batch()
        result, records = CRFM(ToyCritic()).correct(torch.zeros_like(latents), step_at(latents), decode, masks)
        assert result.eq(0).all() and all(record['relative_change'] == record['skipped'] == 0 for record in records)


class TestNoisePrediction:
    """DDPM's first steps hold almost no signal: the clean estimate divides by alpha."""

    @staticmethod
    def step(alpha: float, error: float) -> tuple[Tensor, SamplingStep, Tensor]:
        """A prediction that misses the noise by ``error``, the step, and masks."""
        noise, clean, masks = batch()
        sigma = math.sqrt(1 - alpha**2)
        step = SamplingStep(0, 4, alpha * clean + sigma * noise, alpha=alpha, sigma=sigma, prediction_type='noise')
        return noise + error, step, masks

    @pytest.mark.parametrize('norm', ['relative', 'raw', 'l2'])
    @pytest.mark.parametrize('error', [0.0, 0.1])
    @pytest.mark.parametrize('alpha', [1e-2, 1e-4, 1e-6])
    def test_corrections_stay_finite_and_bounded(self, alpha: float, error: float, norm: str) -> None:
        prediction, step, masks = self.step(alpha, error)
        result, records = CRFM(ToyCritic(), norm=norm, objective='mask').correct(prediction, step, decode, masks)
        assert result.isfinite().all() and max(relative(result - prediction, prediction)) <= 0.5 + 1e-5
        assert all(math.isfinite(value) for record in records for value in record.values())

    def test_without_any_signal_nothing_is_corrected(self) -> None:
        prediction, step, masks = self.step(0.0, 0.1)
        guidance = CRFM(ToyCritic())
        result, records = guidance.bind(decode, masks)(prediction, step)
        assert result is prediction and records is None and not guidance.guides(step)

    def test_a_velocity_says_something_even_without_signal(self) -> None:
        """Flow matching starts at alpha 0; there the estimate is ``z - v``."""
        prediction, latents, masks = batch()
        step = SamplingStep(0, 4, latents, alpha=0.0, sigma=1.0)
        result, records = CRFM(ToyCritic()).bind(decode, masks)(prediction, step)
        assert not torch.equal(result, prediction) and len(records) == 2


class TestIgnoredPixels:

    def test_images_that_differ_only_there_are_corrected_alike(self) -> None:
        """The change is made in what is decoded, where all is ignored: bit-equal corrections and records."""
        prediction, latents, masks = batch()
        masks[:, :PIXELS // 2] = 255
        shown = torch.zeros(2, 3, PIXELS, PIXELS)
        shown[:, :, :PIXELS // 2 - 1] = 0.7  # the critic sees one pixel around each
        guidance = CRFM(ToyCritic(), objective='mask')
        plain, generated = (guidance.correct(prediction, step_at(latents), look, masks)
                          for look in (decode, lambda z: decode(z) + shown))
        assert torch.equal(plain[0], generated[0]) and plain[1] == generated[1]

    @pytest.mark.parametrize('settings', [dict(), dict(norm='raw'), dict(num_rectified=3)], ids=str)
    def test_a_mask_of_nothing_else_is_bit_equal_to_no_guidance(self, settings: dict) -> None:
        prediction, latents, masks = batch()
        ignored = torch.full_like(masks, 255)
        guidance = CRFM(ToyCritic(), objective='mask', **settings)
        result, _ = guidance.correct(prediction, step_at(latents), decode, ignored)
        assert torch.equal(result, prediction)


class TestPolicyOverTheGuidedSteps:

    @pytest.mark.parametrize('policy, expected', [
        ('increase', [0.025, 0.05, 0.075, 0.1]),
        ('decrease', [0.175, 0.15, 0.125, 0.1]),
    ])
    def test_it_counts_the_steps_of_the_run(self, policy: str, expected: list[float]) -> None:
        """Four guided of eight steps."""
        guidance, (prediction, latents, masks) = CRFM(ToyCritic(), 4, 0.2, policy), batch()
        steps = [step_at(latents, index, 8) for index in range(8)]
        assert [guidance.step_size_at(step.index, 8) for step in steps[:4]] == pytest.approx(expected)
        traces = [guidance.bind(decode, masks)(prediction, step)[1] for step in steps]
        assert [records[0]['relative_change'] for records in traces[:4]] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert traces[4:] == [None] * 4


class TestPartsOfTheReleasedRule:
    """None, the clamp alone, the gradient alone and both, by options; for a batch of one, as released."""

    @staticmethod
    def corrected(**settings) -> Tensor:
        prediction, latents, masks = batch(1)
        return CRFM(ToyCritic(), norm='raw', **settings).correct(prediction, step_at(latents), decode, masks)[0]

    def test_clamp_alone(self) -> None:
        assert torch.equal(self.corrected(legacy=True, step_size=0.0), batch(1)[0].clamp(-1, 1))

    def test_gradient_alone(self) -> None:
        prediction, latents, masks = batch(1)
        variable, step = prediction.clone().requires_grad_(), step_at(latents)
        loss = misread_loss(ToyCritic()(decode(step.clean_estimate(variable)) / 2 + 0.5, masks)).sum()
        gradient, = torch.autograd.grad(loss, variable)
        assert gradient.norm() > 0 and prediction.abs().max() > 1
        torch.testing.assert_close(self.corrected(trust_region=None, step_size=5.0), prediction - 5 * gradient)

    def test_both_are_the_clamp_of_the_gradient_step(self) -> None:
        gradient_alone = self.corrected(trust_region=None, step_size=5.0)
        both = self.corrected(legacy=True, step_size=5.0)
        assert torch.equal(both, gradient_alone.clamp(-1, 1))
        assert not torch.equal(both, self.corrected(legacy=True, step_size=0.0))

    def test_the_released_rule_knows_no_trust_region(self) -> None:
        """It would otherwise undo the clamp of a large v."""
        prediction, latents, masks = batch()
        guidance = CRFM(ToyCritic(), norm='raw', legacy=True, step_size=0.0, trust_region=0.01)
        result, _ = guidance.correct(10 * prediction, step_at(latents), decode, masks)
        assert torch.equal(result, (10 * prediction).clamp(-1, 1))


class TestMemory:

    @pytest.mark.parametrize('size', [1, 2, 3])
    def test_samples_judged_apart_are_corrected_alike(self, size: int) -> None:
        prediction, latents, masks = batch(3)
        together, records = CRFM(ToyCritic(), num_rectified=2).correct(prediction, step_at(latents), decode, masks)
        apart, entries = CRFM(ToyCritic(), num_rectified=2, batch_size=size).correct(
            prediction, step_at(latents), decode, masks)
        torch.testing.assert_close(apart, together)
        assert [entry['loss_before'] for entry in entries] == pytest.approx([entry['loss_before'] for entry in records])

    def test_where_it_runs_out_fewer_are_judged_at_once(self, caplog: pytest.LogCaptureFixture) -> None:
        prediction, latents, masks = batch(3)
        sizes = []

        def decode_two(latents: Tensor) -> Tensor:
            sizes.append(len(latents))
            if len(latents) > 2:
                raise torch.OutOfMemoryError('no memory for three')
            return decode(latents)

        guidance = CRFM(ToyCritic())
        result, records = guidance.correct(prediction, step_at(latents), decode_two, masks)
        expected, _ = CRFM(ToyCritic()).correct(prediction, step_at(latents), decode, masks)
        torch.testing.assert_close(result, expected)
        assert sizes == [3, 2, 1] and guidance.batch_size == 2 and len(records) == 3

    def test_one_that_does_not_fit_alone_is_an_error(self) -> None:
        prediction, latents, masks = batch(1)

        def decode_none(latents: Tensor) -> Tensor:
            raise torch.OutOfMemoryError('no memory for one')

        with pytest.raises(torch.OutOfMemoryError, match='for one'):
            CRFM(ToyCritic()).correct(prediction, step_at(latents), decode_none, masks)

    def test_wrong_sizes_are_refused(self) -> None:
        for settings in (dict(batch_size=0), dict(batch_size=2, legacy=True, norm='raw')):
            with pytest.raises(ValueError, match='batch_size'):
                CRFM(ToyCritic(), **settings)


def test_the_second_look_changes_nothing_but_the_records() -> None:
    prediction, latents, masks = batch()
    result, records = CRFM(ToyCritic()).correct(prediction, step_at(latents), decode, masks)
    other, longer = CRFM(ToyCritic(), measure_after=True).correct(prediction, step_at(latents), decode, masks)
    assert torch.equal(result, other)
    assert [entry.keys() - short.keys() for entry, short in zip(longer, records)] == [{'loss_after', 'wrong_after'}] * 2


def test_a_gradient_of_zero_counts_as_uncorrected_where_pixels_are_misread() -> None:
    """diffusers' VAE decoder, compiled, gives one."""
    prediction, latents, masks = batch()
    step = step_at(latents)
    _, records = CRFM(ToyCritic()).correct(prediction, step, lambda z: decode(z.detach()) + 0 * z.mean(), masks)
    assert [entry['skipped'] for entry in records] == [1, 1]
    read = ToyCritic().predict_logits(decode(step.clean_estimate(prediction)) / 2 + 0.5).argmax(1)
    _, records = CRFM(ToyCritic()).correct(prediction, step, decode, read)
    assert [entry['skipped'] for entry in records] == [0, 0]


def test_shapes() -> None:
    prediction, latents, masks = batch(1)
    result, records = CRFM(ToyCritic()).correct(prediction, step_at(latents), decode, masks)
    assert result.shape == (1, CHANNELS, CELLS, CELLS) and len(records) == 1
