"""CRFM: control-rectify flow matching (arXiv 2512.16740, section 4).

At a guided step the predicted velocity v is corrected by the gradient of the critic's loss on the clean estimate,

    z0_hat = z - sigma v,   loss = critic(decode(z0_hat), mask),   g = d loss / d v,

and the sampler steps with the corrected v. The network itself is not back-propagated: a correction costs a decode and a
pass of the critic, forwards and backwards. The same works for noise prediction, through its own clean estimate.

Differs from the release (``legacy=True`` keeps the released rule): the step is a fraction of the sample's own ‖v‖ along
the normalised gradient instead of a raw gradient followed by a clamp of v to [-1, 1]; it is per sample, so it does not
shrink with the batch; a trust region bounds the sum of the corrections of one step.
"""
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from mmsynth.guidance.critic import Verdict
from mmsynth.registry import MODELS
from mmsynth.sampling.step import SamplingStep

Record = dict[str, float]
Decode = Callable[[Tensor], Tensor]


@MODELS.register_module()
class CRFM(nn.Module):
    """Guidance of a sampler by the loss of a segmentor.

    Args:
        critic: A :class:`~mmsynth.guidance.SegmentorCritic`, or its config.
        steps: Number of steps guided, from the first on; 'all' guides the whole run, 0 none.
        step_size: Largest step. With ``norm='relative'`` a fraction of ‖v‖.
        policy: How the step size goes over the run of N steps, at step i: 'constant', 'increase' = (i + 1) / N,
            'decrease' = 1 - (i + 1) / N of ``step_size``.
        norm: 'relative': the step is ``step_size * ‖v‖`` along the normalised gradient; 'raw': the gradient times
            ``step_size``; 'l2': the normalised gradient times ``step_size``.
        num_rectified: Corrections per guided step.
        trust_region: Bound of ‖v' - v‖ / ‖v‖ over the corrections of one step; None for no bound. The released rule has
            none.
        pixels: Which pixels the loss averages over: 'wrong' (misclassified at present, as released) or 'all'.
        attenuate: Multiply v by ``1 - step size`` before each correction (the release's ``is_synth``).
        legacy: The released rule: loss averaged over the batch, v clamped to [-1, 1] after each correction;
            ``norm`` must then be 'raw' or 'l2'.

    Raises:
        ValueError: If an option is out of range or has no effect in the chosen mode.
    """

    def __init__(self,
                 critic: nn.Module | dict,
                 steps: int | Literal['all'] = 'all',
                 step_size: float = 0.1,
                 policy: Literal['constant', 'increase', 'decrease'] = 'constant',
                 norm: Literal['relative', 'raw', 'l2'] = 'relative',
                 num_rectified: int = 1,
                 trust_region: float | None = 0.5,
                 pixels: Literal['wrong', 'all'] = 'wrong',
                 attenuate: bool = False,
                 legacy: bool = False) -> None:
        super().__init__()
        _check_choice('policy', policy, ('constant', 'increase', 'decrease'))
        _check_choice('norm', norm, ('relative', 'raw', 'l2'))
        _check_choice('pixels', pixels, ('wrong', 'all'))
        if steps != 'all' and not (isinstance(steps, int) and steps >= 0):
            raise ValueError(f"`steps` must be 'all' or a number of at least 0, got {steps!r}.")
        if step_size < 0 or num_rectified < 1 or (trust_region is not None and trust_region <= 0):
            raise ValueError('`step_size` must be at least 0, `num_rectified` at least 1 and `trust_region` positive '
                             f'or None, got {step_size}, {num_rectified} and {trust_region}.')
        if legacy and norm == 'relative':
            raise ValueError("`legacy=True` is the released rule, which knows `norm='raw'` and 'l2' only, got "
                             "'relative'.")
        self.critic = MODELS.build(critic) if isinstance(critic, dict) else critic
        self.steps = steps
        self.step_size = step_size
        self.policy = policy
        self.norm = norm
        self.num_rectified = num_rectified
        self.trust_region = trust_region
        self.pixels = pixels
        self.attenuate = attenuate
        self.legacy = legacy

    def check_run(self, num_steps: int) -> None:
        """Raise ValueError if more steps are to be guided than the run has."""
        if self.steps != 'all' and self.steps > num_steps:
            raise ValueError(f'CRFM: `steps` {self.steps} is more than the run\'s {num_steps} sampling steps; '
                             "use at most that many, or 'all'.")

    def bind(self, decode: Decode,
             masks: Tensor) -> Callable[[Tensor, SamplingStep], tuple[Tensor, list[Record] | None]]:
        """The guide of one batch, for :func:`mmsynth.sampling.sample_flow_match`.

        Args:
            decode: Latents (B, C, h, w) → images (B, 3, H, W), nominally [-1, 1], differentiable.
            masks: (B, H, W), integer class ids.
        """

        def guide(prediction: Tensor, step: SamplingStep) -> tuple[Tensor, list[Record] | None]:
            if not self.guides(step):
                return prediction, None
            return self.correct(prediction, step, decode, masks)

        return guide

    def guides(self, step: SamplingStep) -> bool:
        """Whether this step is corrected."""
        return self.steps == 'all' or step.index < self.steps

    def step_size_at(self, index: int, total: int) -> float:
        """The step size at step ``index`` of ``total``."""
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
            The corrected prediction, and per sample: step, sigma, loss_before, loss_after, wrong_before, wrong_after
            (misclassified shares), relative_change (‖dv‖ / ‖v‖) and skipped (1 if a gradient was not finite, so that
            the sample was left uncorrected).
        """
        size = self.step_size_at(step.index, step.total)
        start = prediction.float()
        current, skipped, before = start, torch.zeros(len(start), dtype=torch.bool, device=start.device), None
        for _ in range(self.num_rectified):
            verdict, gradient = self._gradient(current, step, decode, masks)
            before = verdict if before is None else before
            finite = gradient.flatten(1).isfinite().all(1)
            skipped |= ~finite
            updated = self._update(current, gradient, size, start)
            current = torch.where(finite[:, None, None, None], updated, current)
        with torch.no_grad():
            after = self._judge(step.clean_estimate(current), decode, masks)
        records = _records(step, before, after, start, current, skipped)
        return current.to(prediction.dtype), records

    def _gradient(self, current: Tensor, step: SamplingStep, decode: Decode, masks: Tensor) -> tuple[Verdict, Tensor]:
        with torch.enable_grad():
            variable = current.detach().requires_grad_(True)
            verdict = self._judge(step.clean_estimate(variable), decode, masks)
            loss = verdict.wrong_loss if self.pixels == 'wrong' else verdict.mean_loss
            total = loss.mean() if self.legacy else loss.sum()
            gradient = torch.autograd.grad(total, variable)[0]
        return replace(verdict, loss=verdict.loss.detach()), gradient

    def _judge(self, clean: Tensor, decode: Decode, masks: Tensor) -> Verdict:
        return self.critic((decode(clean) / 2 + 0.5).clamp(0, 1), masks)

    def _update(self, current: Tensor, gradient: Tensor, size: float, start: Tensor) -> Tensor:
        if self.norm in ('l2', 'relative'):
            gradient = gradient / _norm(gradient).clamp_min(1e-12)
        if self.norm == 'relative':
            gradient = gradient * _norm(start)
        scaled = current * (1 - size) if self.attenuate else current
        updated = scaled - size * gradient
        if self.legacy:
            return updated.clamp(-1, 1)
        if self.trust_region is not None:
            change = updated - start
            limit = self.trust_region * _norm(start)
            return start + change * (limit / _norm(change).clamp_min(1e-12)).clamp(max=1)
        return updated


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)[:, None, None, None]


def _records(step: SamplingStep, before: Verdict, after: Verdict, start: Tensor, current: Tensor,
             skipped: Tensor) -> list[Record]:
    change = (_norm(current - start) / _norm(start).clamp_min(1e-12)).flatten()
    columns = dict(
        loss_before=before.mean_loss,
        loss_after=after.mean_loss,
        wrong_before=before.wrong_share,
        wrong_after=after.wrong_share,
        relative_change=change,
        skipped=skipped)
    return [{'step': step.index, 'sigma': step.sigma, **{key: float(value[row]) for key, value in columns.items()}}
            for row in range(len(start))]


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'`{option}` must be one of {", ".join(choices)}, got {value!r}.')
