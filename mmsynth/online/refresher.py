"""Paints the samples of a round: masks → generator, under the guidance of a critic → filter.

It is a :class:`~mmsynth.online.orders.Painter`, and knows neither the runner nor the pool. What it paints is a function
of its settings, the round's number and the segmentor's weights, not of ranks or of what was before; nor of batch sizes,
but for the rounding of sums.
"""
import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmsynth.filtering import ClassLossFilter, FilteredSample
from mmsynth.guidance import Critic, Guidance, SegmentorCritic
from mmsynth.online.facts import count_sample
from mmsynth.online.orders import Order, Painted, describe
from mmsynth.online.plan import RefreshPlan
from mmsynth.online.round_filter import RoundFilter
from mmsynth.online.sample import Sample
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample
from mmsynth.synthesis import GeneratedSample, Request, build_generator, generate_batch, load_sample
from mmsynth.utils import derive_seed, isolated_random_state, progress_bar
from mmsynth.utils.batches import batches_of_one_shape

Batch = Sequence[tuple[Request, SynthDataSample]]


class PoolRefresher:
    """Everything of a refresh but the runner and the pool.

    Args:
        plan: What is painted.
        real: Config of the real data set, for the plan's filter.
        batch_size: Images painted together; does not change them.
        device: Where generator and frozen critics run.
        share: Paint every ``share[1]``-th sample of a round, from number ``share[0]`` on: a rank and the world's size.

    Raises:
        ValueError: If ``batch_size`` is below 1, or generator, masks, filter and critic do not fit each other.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(self,
                 plan: RefreshPlan,
                 *,
                 real: Mapping[str, Any] | None = None,
                 batch_size: int = 4,
                 device: torch.device | str = 'cpu',
                 share: tuple[int, int] = (0, 1)) -> None:
        if batch_size < 1:
            raise ValueError(f'`batch_size` must be at least 1, got {batch_size}.')
        self.plan = plan
        self._batch_size, self._device, self._share = batch_size, device, share
        self._critic: Critic | None = None
        self._filter: RoundFilter | None = None
        with isolated_random_state(derive_seed(plan.seed, 'build')):  # weights are drawn before a file's take over
            self.generator = build_generator(plan.cfg, plan.checkpoint, device)
            if isinstance(plan.critic, Mapping):
                self._critic = MODELS.build(plan.critic).to(device)
            if plan.filter is not None:
                self._filter = RoundFilter(plan.filter, real, seed=plan.seed, batch_size=batch_size, device=device)
        if len(plan.classes) != self.generator.num_classes:
            raise ValueError(f'`masks` has {len(plan.classes)} classes, the generator {self.generator.num_classes} '
                             '(`model.label_codec`); use a generator trained on the same classes.')

    @property
    def needs_segmentor(self) -> bool:
        """Whether an order must bring the segmentor in training."""
        return self.plan.needs_segmentor

    def check(self, segmentor: nn.Module | None) -> None:
        """Raise ValueError if a segmentor cannot guide or filter here."""
        if self.needs_segmentor:
            SegmentorCritic(segmentor=segmentor, num_classes=self.generator.num_classes)
        guide = self._guide(segmentor)
        if guide is not None:
            self.generator.check_guidance(guide)

    def __call__(self, order: Order) -> Painted:
        """Paint this painter's share of a round.

        Samples that fail, come out with values that are no numbers, or are dropped by the filter are left out; the
        facts count them, see :mod:`mmsynth.online.facts`. The global random state is left alone.

        Raises:
            ValueError: If the order lacks the segmentor, or it does not fit.
        """
        if self.needs_segmentor and order.segmentor is None:
            raise ValueError(f'round {order.round} needs the segmentor in training, and the order has none.')
        segmentor = self._bring(order.segmentor)
        with isolated_random_state(derive_seed(self.plan.seed, 'round', order.round)):
            dataset = self.plan.masks.dataset(segmentor)
            requests = self.plan.masks.requests(order.round, len(dataset))[self._share[0]::self._share[1]]
            guide = self._guide(segmentor)
            trust = None if self._filter is None else self._filter.build(order.round, segmentor)
            facts: Counter = Counter(requested=len(requests))
            failures: Counter = Counter()
            if self._share[0] == 0:
                requests = progress_bar(requests, unit='img', title=f'synthesis round {order.round}')
            loaded = self._loaded(dataset, requests, failures)
            samples = []
            for batch in batches_of_one_shape(loaded, lambda item: tuple(item[1].gt_sem_seg.shape), self._batch_size):
                samples += self._paint(batch, guide, trust, facts, failures)
        return Painted(samples, dict(facts, failed=dict(failures)))

    def _loaded(self, dataset: Any, requests: Iterable[Request],
                failures: Counter) -> Iterator[tuple[Request, SynthDataSample]]:
        """Requests with their masks, each under its own random state: it does not matter who else is painted."""
        for request in requests:
            try:
                with isolated_random_state(request.seed):
                    sample = load_sample(dataset, request)
            except Exception as error:  # one mask must not cost the round
                failures[describe(error)] += 1
            else:
                yield request, sample

    def _paint(self, batch: Batch, guide: Guidance | None, trust: ClassLossFilter | None, facts: Counter,
               failures: Counter) -> list[Sample]:
        """The samples of a batch that are good. If it fails, each is tried alone."""
        try:
            painted = generate_batch(self.generator, batch, guide=guide, entry=self.plan.settings['generator'])
            whole = [(request.id, found) for (request, _), found in zip(batch, painted) if found.finite]
            results = _look(trust, [found for _, found in whole])
        except Exception as error:
            if len(batch) > 1:
                return [sample for item in batch for sample in self._paint([item], guide, trust, facts, failures)]
            failures[describe(error)] += 1
            return []
        facts['not_finite'] += len(painted) - len(whole)
        for (_, found), result in zip(whole, results):
            count_sample(facts, found.details['guidance'], None if result is None else result.entry)
        return [_sample(id, found, result) for (id, found), result in zip(whole, results)
                if result is None or result.entry['keep']]

    def _bring(self, segmentor: nn.Module | None) -> nn.Module | None:
        """The segmentor itself, or a copy of it where painting runs on another device."""
        if not self.needs_segmentor or segmentor is None:
            return None
        found, wanted = next(segmentor.parameters()).device, torch.device(self._device)
        if found.type == wanted.type and wanted.index in (None, found.index):
            return segmentor
        return copy.deepcopy(segmentor).to(wanted)

    def _guide(self, segmentor: nn.Module | None) -> Guidance | None:
        if self.plan.guidance is None:
            return None
        critic = self._critic or SegmentorCritic(segmentor=segmentor)
        return MODELS.build(self.plan.guidance | dict(critic=critic)).to(self._device)


def _look(trust: ClassLossFilter | None, painted: Sequence[GeneratedSample]) -> Sequence[FilteredSample | None]:
    """What a filter says of samples of one size; None of each without a filter."""
    if trust is None or not painted:
        return [None] * len(painted)
    return trust([found.image for found in painted], [found.mask for found in painted])


def _sample(id: str, found: GeneratedSample, result: FilteredSample | None) -> Sample:
    if result is None:
        return Sample(id, found.image, found.mask, found.details)
    return Sample(id, found.image, found.mask, dict(found.details, filter=result.entry), filtered=result.label,
                  weight=result.weight)
