"""CRFM: control-rectify flow matching (arXiv 2512.16740, section 4).

At a guided step the predicted velocity v is corrected by the gradient of the critic's loss on the clean estimate,

    z0_hat = z - sigma v,   loss = critic(decode(z0_hat), mask),   g = d loss / d v,

and the sampler steps with the corrected v. The network itself is not back-propagated: a correction costs a decode and a
pass of the critic, forwards and backwards. The same works for noise prediction, through its own clean estimate.

Differs from the release (``legacy=True`` keeps the released rule): the step is a fraction of the sample's own ‖v‖ along
the normalised gradient instead of a raw gradient followed by a clamp of v to [-1, 1]; it is per sample, so it does not
shrink with the batch; a trust region bounds the sum of the corrections of one step.

The parts of the released rule by themselves: ``legacy=True, norm='raw', step_size=0`` is its clamp alone,
``norm='raw', trust_region=None`` its gradient alone (per sample), ``legacy=True, norm='raw'`` both.
"""
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmsynth.guidance.base import Critic, CriticOutput, Decode, Guidance, GuidanceDecoder, Record
from mmsynth.guidance.objectives import ObjectiveValue, build_objective
from mmsynth.registry import MODELS
from mmsynth.sampling import Guide, SamplingStep


class Rectified(NamedTuple):
    """What :func:`rectify` returns.

    Attributes:
        prediction: Corrected (B, C, h, w), float32.
        skipped: Samples that were left as they were (B,), bool: a gradient or its result was not finite, or the
            gradient was 0 everywhere although pixels are misread, as that of a decoder that gives none.
        before: The critic's output before the first correction.
    """

    prediction: Tensor
    skipped: Tensor
    before: CriticOutput


def rectify(prediction: Tensor,
            judge: Callable[[Tensor], CriticOutput],
            objective: Callable[[CriticOutput], ObjectiveValue],
            step_size: float,
            *,
            norm: Literal['relative', 'raw', 'l2'] = 'relative',
            num_rectified: int = 1,
            trust_region: float | None = 0.5,
            adaptive: bool = False,
            attenuate: bool = False,
            legacy: bool = False,
            keep: Tensor | None = None) -> Rectified:
    """Correct a prediction down the gradient of an objective.

        v' = v - step_size * ‖v‖ * g / ‖g‖,   g = d loss(judge(v)) / d v

    Args:
        prediction: v, velocity or noise (B, C, h, w).
        judge: Prediction → the critic's output for the clean estimate that it stands for; differentiable.
        objective: The critic's output → what to descend and what is left to do, per sample.
        step_size: See ``norm``.
        norm, num_rectified, trust_region, adaptive, attenuate, legacy: See :class:`CRFM`.
        keep: Weights (B, K, h, w) of sums over the prediction's cells that a correction leaves as they are; None for
            none. See :func:`class_shares`.
    """
    start = current = prediction.float()
    skipped, before = torch.zeros(len(start), dtype=torch.bool, device=start.device), None
    for _ in range(num_rectified):
        with torch.enable_grad():
            variable = current.detach().requires_grad_(True)
            output = judge(variable)
            loss, remaining = objective(output)  # (B,) each
            gradient = torch.autograd.grad(loss.mean() if legacy else loss.sum(), variable)[0]
        if keep is not None:
            gradient = _without(gradient, keep)
        before = output.detach() if before is None else before
        usable = gradient.isfinite().flatten(1).all(1)
        usable &= gradient.flatten(1).any(1) | ~output.wrong.flatten(1).any(1)
        if norm in ('l2', 'relative'):
            gradient = gradient / _norm(gradient).clamp_min(1e-12)
        if norm == 'relative':
            gradient = gradient * _norm(start)
        if adaptive:
            gradient = gradient * remaining[:, None, None, None]
        updated = (current * (1 - step_size) if attenuate else current) - step_size * gradient
        if legacy:
            updated = updated.clamp(-1, 1)
        elif trust_region is not None:
            change = updated - start
            limit = trust_region * _norm(start)
            updated = start + change * (limit / _norm(change).clamp_min(1e-12)).clamp(max=1)
        skipped |= ~(usable & updated.isfinite().flatten(1).all(1))
        current = torch.where(skipped[:, None, None, None], start, updated)
    assert before is not None
    return Rectified(current, skipped, before)


def class_shares(masks: Tensor, num_classes: int, size: Sequence[int]) -> Tensor:
    """Share of each class in the pixels of each latent cell (B, K, h, w), float32.

    Args:
        masks: (B, H, W), integer; what is no class counts for none.
        num_classes: K.
        size: h and w; they divide H and W.
    """
    one_hot = (masks[:, None] == torch.arange(num_classes, device=masks.device)[:, None, None]).float()
    height, width = size
    return F.adaptive_avg_pool2d(one_hot, (height, width))


@MODELS.register_module()
class CRFM(Guidance):
    """Guidance of a sampler by the gradient of a critic's loss.

    Args:
        critic: A :class:`~mmsynth.guidance.Critic` such as :class:`~mmsynth.guidance.SegmentorCritic`, or its config.
        steps: Number of steps guided, from the first on; 'all' guides the whole run, 0 none. A step at which noise is
            predicted and no signal is left (alpha 0) has no clean estimate and is passed over.
        step_size: Largest step. With ``norm='relative'`` a fraction of ‖v‖.
        policy: How the step size goes over N steps, at step i: 'constant', 'increase' = (i + 1) / N,
            'decrease' = 1 - (i + 1) / N of ``step_size``.
        norm: 'relative': the step is ``step_size * ‖v‖`` along the normalised gradient; 'raw': the gradient times
            ``step_size``; 'l2': the normalised gradient times ``step_size``.
        num_rectified: Corrections per guided step.
        trust_region: Bound of ‖v' - v‖ / ‖v‖ over the corrections of one step; None for no bound. The released rule has
            none.
        objective: What is asked of the image: the name of one of :mod:`mmsynth.guidance.objectives` ('misread' as
            released, 'mask', 'uncertainty', 'hardness', 'target'), or the settings of an
            :class:`~mmsynth.guidance.objectives.Objective`, as ``dict(name='target', targets='class_losses.json')``.
        adaptive: Shrink each sample's step by what is left to do, such as the share of its pixels that are misread:
            where next to nothing is, next to nothing is changed.
        keep_class_means: Leave the mean latent of each class's area in an image as it is, and correct only how it
            differs from cell to cell: guidance otherwise makes a class look alike in all images
            (:class:`~mmsynth.evaluation.ClassColorSpread`). The gradient loses its part along the class's area.
        recurrence: Times that each guided step is taken; in between the latent is noised again to the level that it
            had, by the sample's own noise (FreeDoM, arXiv 2303.09833; universal guidance, arXiv 2302.07121). Each
            costs a pass of the network.
        measure_after: Let the critic look again after the corrections of a step, and record what it finds. Changes no
            image; costs a decode and a pass of the critic without a gradient.
        batch_size: Samples that are decoded and judged together; None for all of a batch. Fewer take less memory and
            more time, and change no image. Where memory runs out it is halved, with a warning.
        pixels: Deprecated: 'wrong' is ``objective='misread'``, 'all' is 'mask'.
        attenuate: Multiply v by ``1 - step size`` before each correction (the release's ``is_synth``).
        legacy: The released rule: loss averaged over the batch, v clamped to [-1, 1] after each correction;
            ``norm`` must then be 'raw' or 'l2'.
        decoder: What the critic looks through: a :class:`~mmsynth.guidance.GuidanceDecoder`, or its config; None for
            the generator's own full decode.

    Raises:
        ValueError: If an option is out of range or has no effect in the chosen mode.
    """

    def __init__(self,
                 critic: Critic | dict,
                 steps: int | Literal['all'] = 'all',
                 step_size: float = 0.1,
                 policy: Literal['constant', 'increase', 'decrease'] = 'constant',
                 norm: Literal['relative', 'raw', 'l2'] = 'relative',
                 num_rectified: int = 1,
                 trust_region: float | None = 0.5,
                 objective: str | Mapping[str, Any] = 'misread',
                 adaptive: bool = False,
                 keep_class_means: bool = False,
                 recurrence: int = 1,
                 measure_after: bool = False,
                 batch_size: int | None = None,
                 attenuate: bool = False,
                 legacy: bool = False,
                 decoder: GuidanceDecoder | dict | None = None,
                 pixels: Literal['wrong', 'all'] | None = None) -> None:
        _check_choice('policy', policy, ('constant', 'increase', 'decrease'))
        _check_choice('norm', norm, ('relative', 'raw', 'l2'))
        if pixels is not None:
            _check_choice('pixels', pixels, ('wrong', 'all'))
            objective = dict(wrong='misread', all='mask')[pixels]
            warnings.warn(f'CRFM: `pixels={pixels!r}` is now `objective={objective!r}`.', FutureWarning, stacklevel=2)
        if steps != 'all' and not (isinstance(steps, int) and steps >= 0):
            raise ValueError(f"`steps` must be 'all' or a number of at least 0, got {steps!r}.")
        if step_size < 0 or min(num_rectified, recurrence) < 1 or (trust_region is not None and trust_region <= 0):
            raise ValueError('`step_size` must be at least 0, `num_rectified` and `recurrence` at least 1 and '
                             f'`trust_region` positive or None, got {step_size}, {num_rectified}, {recurrence} and '
                             f'{trust_region}.')
        if legacy and norm == 'relative':
            raise ValueError("`legacy=True` is the released rule, which knows `norm='raw'` and 'l2' only, got "
                             "'relative'.")
        if legacy and keep_class_means:
            raise ValueError('`legacy=True` is the released rule, which knows no `keep_class_means`; leave one out.')
        if batch_size is not None and (batch_size < 1 or legacy):
            raise ValueError('`batch_size` must be at least 1, and None for `legacy=True`, whose gradient is averaged '
                             f'over the whole batch; got {batch_size}.')
        super().__init__(critic, decoder)
        self.steps = steps
        self.step_size = step_size
        self.policy = policy
        self.norm = norm
        self.num_rectified = num_rectified
        self.trust_region = trust_region
        self.objective = build_objective(objective)
        self.adaptive = adaptive
        self.keep_class_means = keep_class_means
        self.recurrence = recurrence
        self.measure_after = measure_after
        self.batch_size = batch_size
        self.attenuate = attenuate
        self.legacy = legacy

    def check_run(self, num_steps: int) -> None:
        """Raise ValueError if more steps are to be guided than the run has."""
        if self.steps != 'all' and self.steps > num_steps:
            raise ValueError(f'CRFM: `steps` {self.steps} is more than the run\'s {num_steps} sampling steps; '
                             f"use 0 to {num_steps}, or 'all'.")

    def check_fit(self, num_classes: int, *, channels: int, factor: int) -> None:
        """As in :class:`Guidance`; the objective's numbers are one per class."""
        super().check_fit(num_classes, channels=channels, factor=factor)
        self.objective.check_num_classes(num_classes)

    def bind(self, decode: Decode, masks: Tensor) -> Guide | None:
        """As in :class:`Guidance`."""
        if self.steps == 0:
            return None

        def guide(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, list[Record] | None]:
            if not self.guides(step):
                return prediction, None
            return self.correct(prediction, step, decode, masks)

        return guide

    def guides(self, step: SamplingStep) -> bool:
        """Whether this step is corrected."""
        return (self.steps == 'all' or step.index < self.steps) and step.has_clean_estimate

    def step_size_at(self, index: int, total: int) -> float:
        """The step size at step ``index`` of a run of ``total``."""
        share = (index + 1) / total
        return self.step_size * {'constant': 1.0, 'increase': share, 'decrease': 1 - share}[self.policy]

    def correct(self, prediction: Tensor, step: SamplingStep, decode: Decode,
                masks: Tensor) -> tuple[Tensor, list[Record]]:
        """Correct one prediction.

        Args:
            prediction: Velocity or noise (B, C, h, w).
            step: Where the run stands.
            decode: As in :meth:`bind`.
            masks: (B, H, W), integer.

        Returns:
            The corrected prediction, and per sample: step, sigma, loss_before and wrong_before (misclassified share),
            relative_change (‖dv‖ / ‖v‖), skipped (1 if the sample was left uncorrected at this step, see
            :class:`Rectified`), and with ``measure_after`` loss_after and wrong_after.
        """
        corrected, records, first = [], [], 0
        while first < len(prediction):
            rows = slice(first, first + (self.batch_size or len(prediction)))
            part = replace(step, latents=step.latents[rows])
            try:
                values, entries = self._correct_rows(prediction[rows], part, decode, masks[rows])
            except torch.OutOfMemoryError:
                size = len(prediction[rows])
                if size == 1 or self.legacy:
                    raise
                self.batch_size = (size + 1) // 2
                print_log(f'CRFM: memory ran out at {size} samples; going on with `batch_size={self.batch_size}`. Set '
                          'it in the config to begin so.', logger='current', level=logging.WARNING)
                continue
            corrected.append(values)
            records += entries
            first = rows.stop
        return torch.cat(corrected), records

    def _correct_rows(self, prediction: Tensor, step: SamplingStep, decode: Decode,
                      masks: Tensor) -> tuple[Tensor, list[Record]]:
        def judge(velocity: Tensor) -> CriticOutput:
            return self.judge(step.clean_estimate(velocity), decode, masks)

        keep = class_shares(masks, self.critic.num_classes, prediction.shape[-2:]) if self.keep_class_means else None
        with self.critic.frozen_eval():
            corrected, skipped, before = rectify(
                prediction, judge, lambda output: self.objective(output, masks),
                self.step_size_at(step.index, step.total), norm=self.norm, num_rectified=self.num_rectified,
                trust_region=self.trust_region, adaptive=self.adaptive, attenuate=self.attenuate, legacy=self.legacy,
                keep=keep)
            start = prediction.float()
            columns = dict(loss_before=before.mean_loss, wrong_before=before.wrong_share,
                           relative_change=(_norm(corrected - start) / _norm(start).clamp_min(1e-12)).flatten(),
                           skipped=skipped)
            if self.measure_after:
                with torch.no_grad():
                    after = judge(corrected)
                columns |= dict(loss_after=after.mean_loss, wrong_after=after.wrong_share)
        records = [dict(step=step.index, sigma=step.sigma) | {key: float(value[row]) for key, value in columns.items()}
                   for row in range(len(start))]
        return corrected.to(prediction.dtype), records


def _without(gradient: Tensor, weights: Tensor) -> Tensor:
    """The part of a gradient (B, C, h, w) along which no weighted sum (B, K, h, w) changes: its projection."""
    basis = weights.flatten(2)  # (B, K, h w)
    along = basis.mT @ (torch.linalg.pinv(basis.mT) @ gradient.flatten(2).mT)  # (B, h w, C)
    return gradient - along.mT.reshape(gradient.shape)


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)[:, None, None, None]


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'`{option}` must be one of {", ".join(choices)}, got {value!r}.')
