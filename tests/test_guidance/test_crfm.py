"""CRFM on a toy critic: the gradient by finite differences, the step's size, and what must not change it."""
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from toy_critic import CELLS, CHANNELS, PIXELS, ToyCritic, batch, decode, misread_loss, step_at

from mmsynth.guidance import CRFM
from mmsynth.guidance.base import Record
from mmsynth.guidance.crfm import class_shares
from mmsynth.registry import MODELS
from mmsynth.sampling import sample


def crfm(*, kernel: int = 3, broken: tuple[int, ...] = (), **settings) -> CRFM:
    return CRFM(ToyCritic(kernel, broken), **settings)


def corrected(guidance: CRFM, rows: int = 2, prediction_type: str = 'velocity') -> tuple[Tensor, Tensor, list[Record]]:
    """The prediction, what becomes of it, and the records."""
    prediction, latents, masks = batch(rows)
    result, records = guidance.correct(prediction, step_at(latents, prediction_type=prediction_type), decode, masks)
    return prediction, result, records


def relative(change: Tensor, prediction: Tensor) -> list[float]:
    return (change.flatten(1).norm(dim=1) / prediction.flatten(1).norm(dim=1)).tolist()


class TestGradient:

    @pytest.mark.parametrize('prediction_type', ['velocity', 'noise'])
    @pytest.mark.parametrize('objective, loss', [
        ('misread', misread_loss),
        ('mask', lambda output: output.mean_loss),
        ('uncertainty', lambda output: -output.entropy.mean((1, 2))),
    ])
    def test_it_is_that_of_finite_differences(self, objective: str, loss: Callable, prediction_type: str) -> None:
        """With ``norm='raw'`` and step size 1 the correction is the gradient; central differences in float64."""
        prediction, result, _ = corrected(crfm(norm='raw', step_size=1, objective=objective), 2, prediction_type)
        _, latents, masks = batch()
        critic, step = ToyCritic().double(), step_at(latents.double(), prediction_type=prediction_type)

        def total(values: Tensor) -> Tensor:
            return loss(critic(decode(step.clean_estimate(values)) / 2 + 0.5, masks)).sum()

        changes = 1e-4 * torch.eye(prediction.numel(), dtype=torch.float64)[::5].view(-1, *prediction.shape)
        start = prediction.double()
        expected = torch.stack([(total(start + change) - total(start - change)) / 2e-4 for change in changes])
        found = (prediction - result).flatten()[::5]
        assert found.abs().max() > 1e-4
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=2e-3)

    def test_pixels_that_are_right_do_not_count(self) -> None:
        """By default only misclassified pixels pull; where the critic reads its own reading, none are."""
        prediction, latents, _ = batch()
        step = step_at(latents)
        logits = F.conv2d(decode(step.clean_estimate(prediction)) / 2 + 0.5, ToyCritic().weight, padding='same')
        result, records = crfm(step_size=0.5).correct(prediction, step, decode, logits.argmax(1))
        assert torch.equal(result, prediction)
        assert all(record['wrong_before'] == record['skipped'] == 0 < record['loss_before'] for record in records)

    def test_images_are_clamped_before_the_critic_sees_them(self) -> None:
        prediction, latents, masks = batch()
        result, _ = crfm().correct(prediction, step_at(latents), lambda latents: decode(latents) + 5, masks)
        assert torch.equal(result, prediction)  # all white: no way out, and no gradient


class TestStep:

    @pytest.mark.parametrize('step_size', [0.02, 0.1, 0.4])
    def test_its_size_is_a_fraction_of_the_prediction(self, step_size: float) -> None:
        prediction, result, records = corrected(crfm(step_size=step_size))
        assert relative(result - prediction, prediction) == pytest.approx([step_size] * 2, rel=1e-4)
        assert [record['relative_change'] for record in records] == pytest.approx([step_size] * 2, rel=1e-4)

    def test_a_longer_prediction_is_corrected_in_proportion(self) -> None:
        prediction, latents, masks = batch()
        latents = latents + 0.7 * 99 * prediction  # the same clean estimate for a prediction 100 times as long
        result, _ = crfm().correct(100 * prediction, step_at(latents), decode, masks)
        torch.testing.assert_close(result / 100, corrected(crfm())[1], atol=1e-3, rtol=1e-2)

    def test_the_normalised_rule_steps_by_a_fixed_length(self) -> None:
        prediction, result, _ = corrected(crfm(norm='l2', step_size=0.3))
        assert (result - prediction).flatten(1).norm(dim=1).tolist() == pytest.approx([0.3] * 2, rel=1e-4)

    def test_all_rules_point_along_the_gradient(self) -> None:
        results = [corrected(crfm(norm=norm, step_size=0.1)) for norm in ('relative', 'raw', 'l2')]
        directions = [F.normalize((result - prediction).flatten(1)) for prediction, result, _ in results]
        for direction in directions[1:]:
            torch.testing.assert_close(direction, directions[0], atol=1e-3, rtol=0)

    def test_the_trust_region_bounds_the_sum_of_corrections(self) -> None:
        settings = dict(step_size=0.2, num_rectified=8, objective='mask')
        bound = corrected(crfm(trust_region=0.5, **settings))
        free = corrected(crfm(trust_region=None, **settings))
        assert relative(bound[1] - bound[0], bound[0]) == pytest.approx([0.5] * 2, abs=1e-4)
        assert min(relative(free[1] - free[0], free[0])) > 1

    def test_class_means_are_kept_where_asked(self) -> None:
        """Means of the cells that a class has to itself, and sums over mixed ones by its share of each."""
        _, _, masks = batch()
        shares = F.avg_pool2d(F.one_hot(masks, ToyCritic().num_classes).permute(0, 3, 1, 2).float(), PIXELS // CELLS)
        sums = []
        for keep in (False, True):
            prediction, result, records = corrected(crfm(keep_class_means=keep, objective='mask'))
            sums.append(torch.einsum('bkhw,bchw->bkc', shares, result - prediction).abs().max())
            assert [record['relative_change'] for record in records] == pytest.approx([0.1] * 2, rel=1e-4)
        assert sums[1] < 1e-5 < 1e-2 < sums[0]

    def test_the_kept_means_take_their_part_of_the_gradient_and_no_more(self) -> None:
        """A part that changes no mean stays whole: what is lost is a sum of the classes' shares, a constant each."""
        prediction, whole, _ = corrected(crfm(norm='raw', objective='mask'))
        _, kept, _ = corrected(crfm(norm='raw', objective='mask', keep_class_means=True))
        _, _, masks = batch()
        lost = (kept - whole).flatten(2)
        shares = class_shares(masks, ToyCritic().num_classes, prediction.shape[-2:]).flatten(2)
        fit = torch.linalg.lstsq(shares.mT, lost.mT, driver='gelsd').solution
        torch.testing.assert_close((shares.mT @ fit).mT, lost, atol=1e-6, rtol=1e-4)
        assert lost.abs().max() > 1e-6

    def test_a_second_correction_starts_from_the_first(self) -> None:
        prediction, latents, masks = batch()
        once = crfm(norm='raw', step_size=2.0, objective='mask')
        by_hand = prediction
        for _ in range(2):
            by_hand, _ = once.correct(by_hand, step_at(latents), decode, masks)
        _, twice, _ = corrected(crfm(norm='raw', step_size=2.0, objective='mask', num_rectified=2))
        torch.testing.assert_close(twice, by_hand)

    @pytest.mark.parametrize('policy, expected', [
        ('constant', [0.2, 0.2, 0.2, 0.2]),
        ('increase', [0.05, 0.1, 0.15, 0.2]),
        ('decrease', [0.15, 0.1, 0.05, 0.0]),
    ])
    def test_policies(self, policy: str, expected: list[float]) -> None:
        guidance, (prediction, latents, masks) = crfm(policy=policy, step_size=0.2), batch()
        assert [guidance.step_size_at(index, 4) for index in range(4)] == pytest.approx(expected)
        changes = [guidance.correct(prediction, step_at(latents, index), decode, masks)[1][0]['relative_change']
                   for index in range(4)]
        assert changes == pytest.approx(expected, rel=1e-4, abs=1e-7)

    def test_attenuation_shrinks_the_prediction_first(self) -> None:
        prediction, latents, masks = batch()
        ignored = torch.full_like(masks, 255)  # no gradient: attenuation alone is left
        result, _ = crfm(attenuate=True, step_size=0.1).correct(prediction, step_at(latents), decode, ignored)
        torch.testing.assert_close(result, 0.9 * prediction)

    def test_the_released_rule_clamps_even_where_it_does_not_step(self) -> None:
        prediction, result, _ = corrected(crfm(legacy=True, norm='raw', step_size=0.0))
        assert torch.equal(result, prediction.clamp(-1, 1)) and prediction.abs().max() > 1


class TestLoss:

    @pytest.mark.parametrize('prediction_type', ['velocity', 'noise'])
    @pytest.mark.parametrize('objective', ['mask', 'misread'])
    def test_it_falls(self, objective: str, prediction_type: str) -> None:
        _, _, records = corrected(crfm(objective=objective, step_size=0.1, measure_after=True), 3, prediction_type)
        assert all(record['loss_after'] < record['loss_before'] for record in records)

    def test_it_falls_further_with_more_corrections(self) -> None:
        guides = [crfm(objective='mask', trust_region=None, num_rectified=count, measure_after=True)
                  for count in (1, 2, 4)]
        losses = [corrected(guide)[2][0]['loss_after'] for guide in guides]
        assert losses == sorted(losses, reverse=True)

    def test_the_records_are_what_the_critic_says(self) -> None:
        prediction, latents, masks = batch()
        step = step_at(latents, index=2, total=9)
        result, records = crfm(step_size=0.3, measure_after=True).correct(prediction, step, decode, masks)
        before, after = (ToyCritic()(decode(step.clean_estimate(v)) / 2 + 0.5, masks) for v in (prediction, result))
        for row, record in enumerate(records):
            assert (record['step'], record['sigma'], record['skipped']) == (2, 0.7, 0)
            for name, output in (('before', before), ('after', after)):
                assert record[f'loss_{name}'] == pytest.approx(float(output.mean_loss[row]), rel=1e-5)
                assert record[f'wrong_{name}'] == pytest.approx(float(output.wrong_share[row]))
        assert all(type(value) in (int, float) for record in records for value in record.values())


class TestSamples:

    @pytest.mark.parametrize('norm', ['relative', 'raw', 'l2'])
    def test_a_batch_of_two_is_two_batches_of_one(self, norm: str) -> None:
        prediction, latents, masks = batch()
        guidance = crfm(norm=norm, num_rectified=2)
        together, records = guidance.correct(prediction, step_at(latents), decode, masks)
        for row in range(2):
            one = slice(row, row + 1)
            alone, record = guidance.correct(prediction[one], step_at(latents[one]), decode, masks[one])
            torch.testing.assert_close(together[one], alone, atol=1e-6, rtol=1e-5)
            assert record[0] == pytest.approx(records[row], rel=1e-4)

    def test_the_released_rule_shrinks_with_the_batch(self) -> None:
        prediction, latents, masks = batch()
        prediction = prediction.clamp(-0.5, 0.5)  # so that the clamp stays out of it
        guidance = crfm(legacy=True, norm='raw', step_size=1.0)
        together, _ = guidance.correct(prediction, step_at(latents), decode, masks)
        alone, _ = guidance.correct(prediction[:1], step_at(latents[:1]), decode, masks[:1])
        torch.testing.assert_close((together - prediction)[:1], (alone - prediction[:1]) / 2, atol=1e-7, rtol=1e-4)

    def test_one_without_a_finite_gradient_is_left_alone_and_reported(self) -> None:
        prediction, healthy, _ = corrected(crfm(num_rectified=2))
        _, result, records = corrected(crfm(num_rectified=2, broken=(1, )))
        assert torch.equal(result[1], prediction[1])
        torch.testing.assert_close(result[0], healthy[0], atol=1e-6, rtol=1e-5)
        assert [(record['skipped'], record['relative_change'] > 0) for record in records] == [(0, True), (1, False)]

    def test_what_is_given_is_not_written_to_and_the_dtype_stays(self) -> None:
        prediction, latents, masks = batch()
        prediction = prediction.bfloat16()
        given = prediction, latents, masks
        copies = [value.clone() for value in given]
        result, _ = crfm().correct(prediction, step_at(latents), decode, masks)
        assert result.dtype == torch.bfloat16 and not result.requires_grad
        assert all(map(torch.equal, given, copies))


class TestIgnoredPixels:

    def test_nothing_is_corrected_there(self) -> None:
        prediction, latents, masks = batch()
        masks[:, :, PIXELS // 2:] = 255
        result, _ = crfm(kernel=1).correct(prediction, step_at(latents), decode, masks)
        change = (result - prediction).abs().amax(1)
        assert change[..., CELLS // 2:].max() == 0 and change[..., :CELLS // 2].max() > 0

    def test_what_stands_there_makes_no_difference_elsewhere(self) -> None:
        prediction, latents, masks = batch()
        masks[:, :, PIXELS // 2:] = 255
        other = latents.clone()
        other[..., CELLS // 2:] += 1
        first, second = (crfm(kernel=1).correct(prediction, step_at(z), decode, masks) for z in (latents, other))
        assert torch.equal(first[0], second[0]) and first[1] == second[1]

    def test_a_mask_of_nothing_else_corrects_nothing(self) -> None:
        prediction, latents, masks = batch()
        masks[1] = 255
        for objective in ('misread', 'mask', 'uncertainty', 'hardness'):
            result, records = crfm(objective=objective).correct(prediction, step_at(latents), decode, masks)
            assert torch.equal(result[1], prediction[1]) and not torch.equal(result[0], prediction[0])
            assert records[1]['loss_before'] == records[1]['wrong_before'] == records[1]['skipped'] == 0


class TestAdaptive:

    def test_the_step_shrinks_with_the_misread_share(self) -> None:
        prediction, result, records = corrected(crfm(adaptive=True, step_size=0.4))
        expected = [0.4 * record['wrong_before'] for record in records]
        assert 0 < min(expected) < max(expected) < 0.4
        assert relative(result - prediction, prediction) == pytest.approx(expected, rel=1e-4)

    def test_an_unsure_critic_leaves_little_to_ask_for(self) -> None:
        """The step towards uncertainty is the share that the mean entropy misses."""
        prediction, latents, masks = batch()
        step = step_at(latents)
        entropy = ToyCritic()(decode(step.clean_estimate(prediction)) / 2 + 0.5, masks).entropy.mean((1, 2))
        result, _ = crfm(objective='uncertainty', adaptive=True, step_size=0.4).correct(prediction, step, decode, masks)
        assert relative(result - prediction, prediction) == pytest.approx((0.4 * (1 - entropy)).tolist(), rel=1e-3)


def test_pixels_is_the_objective_under_its_old_name() -> None:
    for pixels, objective in (('all', 'mask'), ('wrong', 'misread')):
        with pytest.warns(FutureWarning, match=f'`objective={objective!r}`'):
            renamed = crfm(pixels=pixels)
        assert torch.equal(corrected(renamed)[1], corrected(crfm(objective=objective))[1])


class TestRun:

    @staticmethod
    def run(guide: Callable | None, num_steps: int = 5) -> tuple[Tensor, list[list[Record]]]:
        noise = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(2))
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return sample(lambda z, t: torch.tanh(z), noise, scheduler, num_steps, guide)

    def test_no_steps_are_bit_equal_to_no_guidance(self) -> None:
        latents, traces = self.run(crfm(steps=0, legacy=True, norm='raw').bind(decode, batch()[2]))
        assert torch.equal(latents, self.run(None)[0]) and traces == [[], []]

    @pytest.mark.parametrize('steps, guided', [(2, [0, 1]), ('all', [0, 1, 2, 3, 4])])
    def test_the_first_steps_are_guided(self, steps: int | str, guided: list[int]) -> None:
        latents, traces = self.run(crfm(steps=steps).bind(decode, batch()[2]))
        assert [[record['step'] for record in trace] for trace in traces] == [guided, guided]
        assert not torch.equal(latents, self.run(None)[0])

    def test_the_image_at_the_end_shows_its_mask_better(self) -> None:
        masks = batch()[2]
        plain, guided = (self.run(guide)[0] for guide in (None, crfm(step_size=0.3).bind(decode, masks)))
        losses = [ToyCritic()(decode(latents) / 2 + 0.5, masks).mean_loss for latents in (plain, guided)]
        assert (losses[1] < losses[0]).all()

    def test_more_steps_than_the_run_has_are_refused(self) -> None:
        with pytest.raises(ValueError, match='`steps` 6 .* 5 sampling steps'):
            crfm(steps=6).check_run(5)
        crfm(steps=5).check_run(5)
        crfm(steps='all').check_run(1)


@pytest.mark.parametrize('settings, message', [
    (dict(steps=-1), "`steps` must be 'all' or a number of at least 0, got -1"),
    (dict(steps='some'), "`steps` must be 'all' or a number of at least 0, got 'some'"),
    (dict(step_size=-0.1), '`step_size` must be at least 0'),
    (dict(num_rectified=0), '`num_rectified` and `recurrence` at least 1'),
    (dict(trust_region=0.0), '`trust_region` positive or None, got 0.1, 1, 1 and 0.0'),
    (dict(policy='linear'), "`policy` must be one of constant, increase, decrease, got 'linear'"),
    (dict(norm='l1'), "`norm` must be one of relative, raw, l2, got 'l1'"),
    (dict(objective='right'), '`objective` must be one of'),
    (dict(objective=dict(name='mask', weights=[1])), '`objective` does not know weights'),
    (dict(recurrence=0), 'got 0.1, 1, 0 and 0.5'),
    (dict(pixels='right'), "`pixels` must be one of wrong, all, got 'right'"),
    (dict(legacy=True, norm='raw', keep_class_means=True), '`legacy=True` .* knows no `keep_class_means`'),
    (dict(legacy=True), "`legacy=True` is the released rule, which knows `norm='raw'` and 'l2' only, got 'relative'"),
])
def test_options_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmsynth.CRFM', critic=ToyCritic(), **settings))
