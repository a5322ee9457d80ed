"""Best of n: generate several candidates without correction, keep the one that fits an objective best.

The gradient-free counterpart of CRFM. It needs n sampling runs and n looks of the critic, and no backward pass, so
any segmentor and any decoder can choose.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmsynth.guidance.base import Critic, Decode, Guidance, GuidanceDecoder, Record, Sample
from mmsynth.guidance.objectives import build_objective
from mmsynth.registry import MODELS
from mmsynth.utils.seeds import derive_seed


@MODELS.register_module()
class BestOfN(Guidance):
    """Keeps, per sample, the candidate that fits an objective best, by default that of lowest loss; on a tie the first.

    Candidate 0 is generated under the sample's own seed, so that ``num_candidates=1`` is the same as no guidance.
    The choice for one sample does not depend on the others of its batch.

    Args:
        critic: A :class:`~mmsynth.guidance.Critic`, or its config.
        num_candidates: Images generated per sample.
        objective: By which candidates are compared: as in :class:`~mmsynth.guidance.CRFM`; 'mask', the mean loss over
            the pixels that count, by default.
        decoder: What the critic looks through; None for the generator's own decode.

    Raises:
        ValueError: If ``num_candidates`` is below 1, the objective is wrong, or the decoder has no effect.
    """

    def __init__(self,
                 critic: Critic | dict,
                 num_candidates: int = 4,
                 objective: str | Mapping[str, Any] = 'mask',
                 decoder: GuidanceDecoder | dict | None = None) -> None:
        if num_candidates < 1:
            raise ValueError(f'`num_candidates` must be at least 1, got {num_candidates}.')
        super().__init__(critic, decoder)
        self.num_candidates = num_candidates
        self.objective = build_objective(objective)

    def check_fit(self, num_classes: int, *, channels: int, factor: int) -> None:
        """As in :class:`Guidance`; the objective's numbers are one per class."""
        super().check_fit(num_classes, channels=channels, factor=factor)
        self.objective.check_num_classes(num_classes)

    def run(self, sample: Sample, seeds: Sequence[int], decode: Decode, masks: Tensor, *,
            num_steps: int) -> tuple[Tensor, list[list[Record]]]:
        """As in :class:`Guidance`.

        Returns:
            The latents of the candidates kept, and per sample a trace of one entry: step (the last), candidate (the
            number of the one kept), seed (that generates it without guidance), loss_before and wrong_before of
            candidate 0, loss_after and wrong_after of the one kept.
        """
        rows = torch.arange(len(seeds), device=masks.device)
        candidates, scores, losses, wrong = [], [], [], []
        for number in range(self.num_candidates):
            latents, _ = sample([candidate_seed(seed, number) for seed in seeds])
            with torch.no_grad(), self.critic.frozen_eval():
                output = self.judge(latents, decode, masks)
            candidates.append(latents)
            scores.append(self.objective(output, masks).loss)
            losses.append(output.mean_loss)
            wrong.append(output.wrong_share)
        kept = torch.stack(scores).nan_to_num(nan=math.inf).argmin(0)  # the first of equals
        traces = [[_entry(num_steps - 1, number, seeds[row], [loss[row] for loss in losses], [w[row] for w in wrong])]
                  for row, number in enumerate(kept.tolist())]
        return torch.stack(candidates)[kept, rows], traces


def candidate_seed(seed: int, number: int) -> int:
    """The seed of candidate ``number`` of a sample: its own for the first, one derived from it for the others."""
    return int(seed) if number == 0 else derive_seed(seed, 'candidate', number)


def _entry(step: int, number: int, seed: int, losses: Sequence[Tensor], wrong: Sequence[Tensor]) -> Record:
    """The record of one sample, of which candidate ``number`` is kept."""
    return dict(
        step=step,
        candidate=number,
        seed=candidate_seed(seed, number),
        loss_before=float(losses[0]),
        loss_after=float(losses[number]),
        wrong_before=float(wrong[0]),
        wrong_after=float(wrong[number]))
