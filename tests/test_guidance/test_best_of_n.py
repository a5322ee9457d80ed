"""Best of n against the enumeration of its candidates."""
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from toy_critic import CELLS, CHANNELS, LatentReader, ToyCritic, batch, decode

from mmsynth.guidance import BestOfN, Critic, CriticOutput
from mmsynth.guidance.base import Record
from mmsynth.guidance.best_of_n import candidate_seed
from mmsynth.registry import MODELS
from mmsynth.utils import seeded_noise

SEEDS = [11, 12, 13]


class Indifferent(ToyCritic):
    """Says the same of every image."""

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        valid = masks != 255
        return CriticOutput(torch.ones_like(masks, dtype=torch.float32) * valid, valid, valid)


class Blind(ToyCritic):
    """Says NaN of the first candidates that it sees."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, images: Tensor, masks: Tensor) -> CriticOutput:
        output = super().forward(images, masks)
        self.times -= 1
        return CriticOutput(output.loss * math.nan, output.wrong, output.valid) if self.times >= 0 else output


def sample(seeds: Sequence[int]) -> tuple[Tensor, list[list[Record]]]:
    """A generator that generates its noise."""
    return 5 * seeded_noise(seeds, (CHANNELS, CELLS, CELLS)), [[] for _ in seeds]


def run(guidance: BestOfN, rows: slice = slice(0, 3), masks: Tensor | None = None) -> tuple[Tensor, list[Record]]:
    masks = batch(3)[2] if masks is None else masks
    latents, traces = guidance.run(sample, SEEDS[rows], decode, masks[rows], num_steps=7)
    assert all(len(trace) == 1 for trace in traces)
    return latents, [trace[0] for trace in traces]


@pytest.mark.parametrize('critic', [ToyCritic(), LatentReader()], ids=['images', 'latents'])
def test_the_candidate_of_lowest_loss_is_kept(critic: Critic) -> None:
    guidance, masks = BestOfN(critic, 6), batch(3)[2]
    latents, entries = run(guidance)
    for row, (seed, entry) in enumerate(zip(SEEDS, entries)):
        candidates = torch.cat([sample([candidate_seed(seed, number)])[0] for number in range(6)])
        output = guidance.judge(candidates, decode, masks[[row] * 6])
        best = int(output.mean_loss.argmin())
        assert torch.equal(latents[row], candidates[best])
        assert entry == dict(
            step=6, candidate=best, seed=candidate_seed(seed, best),
            loss_before=pytest.approx(float(output.mean_loss[0])),
            loss_after=pytest.approx(float(output.mean_loss[best])),
            wrong_before=pytest.approx(float(output.wrong_share[0])),
            wrong_after=pytest.approx(float(output.wrong_share[best])))
    assert len({entry['candidate'] for entry in entries}) > 1


def test_the_seed_of_the_entry_generates_what_was_kept() -> None:
    latents, entries = run(BestOfN(ToyCritic(), 6))
    assert torch.equal(sample([entry['seed'] for entry in entries])[0], latents)


def test_one_candidate_is_bit_equal_to_no_guidance() -> None:
    latents, entries = run(BestOfN(ToyCritic(), 1))
    assert torch.equal(latents, sample(SEEDS)[0])
    assert [(entry['candidate'], entry['seed']) for entry in entries] == [(0, seed) for seed in SEEDS]


def test_more_candidates_are_never_worse() -> None:
    losses = [[entry['loss_after'] for entry in run(BestOfN(ToyCritic(), count))[1]] for count in (1, 2, 4, 8)]
    for fewer, more in zip(losses, losses[1:]):
        assert all(after <= before for before, after in zip(fewer, more))
    assert losses[-1] < losses[0]


def test_the_batch_makes_no_difference() -> None:
    guidance = BestOfN(ToyCritic(), 5)
    latents, entries = run(guidance)
    for row in range(3):
        alone, (entry, ) = run(guidance, slice(row, row + 1))
        assert torch.equal(alone[0], latents[row]) and entry == pytest.approx(entries[row])


def test_candidates_have_seeds_of_their_own() -> None:
    seeds = [candidate_seed(seed, number) for seed in range(50) for number in range(20)]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert [candidate_seed(seed, 0) for seed in SEEDS] == SEEDS


class TestTies:

    def test_the_first_of_equals_is_kept(self) -> None:
        latents, entries = run(BestOfN(Indifferent(), 5))
        assert torch.equal(latents, sample(SEEDS)[0]) and {entry['candidate'] for entry in entries} == {0}

    def test_a_mask_of_ignored_pixels_keeps_the_first(self) -> None:
        masks = batch(3)[2]
        masks[1] = 255
        latents, entries = run(BestOfN(ToyCritic(), 5), masks=masks)
        assert entries[1]['candidate'] == entries[1]['loss_after'] == entries[1]['wrong_after'] == 0
        assert torch.equal(latents[1], sample(SEEDS)[0][1])

    def test_one_of_no_finite_loss_is_kept_only_if_all_are(self) -> None:
        assert all(entry['candidate'] == 2 for entry in run(BestOfN(Blind(2), 3))[1])
        assert all(entry['candidate'] == 0 for entry in run(BestOfN(Blind(3), 3))[1])


def test_it_corrects_no_step() -> None:
    guidance = MODELS.build(dict(type='mmsynth.BestOfN', critic=ToyCritic()))
    assert guidance.num_candidates == 4 and guidance.bind(decode, batch()[2]) is None


def test_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match='`num_candidates` must be at least 1, got 0'):
        BestOfN(ToyCritic(), 0)
