"""Generate the samples of a round: masks → generator, under the guidance of a critic → filter.

:class:`RoundSynthesizer` knows neither the runner nor the pool. What it generates is a function of its settings, the
round's number and the segmentor's weights, not of ranks or of what was before; nor of batch sizes, but for the rounding
of sums.
"""
import copy
import logging
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

from mmsynth.filtering import ClassLosses, ClassLossFilter, ClassLossMeter, pixel_losses
from mmsynth.filtering.real_pairs import class_names, real_pairs
from mmsynth.guidance import Critic, Guidance, SegmentorCritic
from mmsynth.online.request import SynthesisRequest, SynthesisResult, Synthesizer, describe
from mmsynth.online.sample import Sample
from mmsynth.online.settings import RULE_OPTIONS, RoundSettings
from mmsynth.online.statistics import count_sample
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample
from mmsynth.synthesis import Request, build_dataset, build_generator, generate_batch, load_sample
from mmsynth.utils import derive_seed, isolated_random_state, progress_bar
from mmsynth.utils.batches import batches_of_one_shape
from mmsynth.utils.checkpoint import load_state_dict
from mmsynth.utils.datasets import leaf_datasets

BUILD_SYNTHESIZER = f'{__name__}:build_synthesizer'


class RoundSynthesizer:
    """Generate rounds, or one rank's share of them.

    Args:
        settings: What a round generates.
        real: Config of the real data set, for the filter.
        batch_size: Images generated together; does not change them.
        device: Where generator and frozen critics run.
        share: Generate every ``share[1]``-th sample of a round, from number ``share[0]`` on: a rank and the world's
            size.

    Raises:
        ValueError: If generator, masks, filter and critic do not fit each other.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(self,
                 settings: RoundSettings,
                 *,
                 real: Mapping[str, Any] | None = None,
                 batch_size: int = 4,
                 device: torch.device | str = 'cpu',
                 share: tuple[int, int] = (0, 1)) -> None:
        self.settings = settings
        self._batch_size, self._device, self._share = batch_size, device, share
        self._critic: Critic | None = None
        self._filter: RoundFilter | None = None
        with isolated_random_state(derive_seed(settings.seed, 'build')):  # weights are drawn, then loaded from a file
            self.generator = build_generator(settings.cfg, settings.checkpoint, device)
            if isinstance(settings.critic, Mapping):
                self._critic = MODELS.build(settings.critic).to(device)
            if settings.filter is not None:
                self._filter = RoundFilter(settings.filter, real, seed=settings.seed, batch_size=batch_size,
                                           device=device)
        if len(settings.classes) != self.generator.num_classes:
            raise ValueError(f'`masks` has {len(settings.classes)} classes, the generator '
                             f'{self.generator.num_classes} (`model.label_codec`); use a generator trained on the same '
                             'classes.')

    def check(self, segmentor: nn.Module | None) -> None:
        """Raise ValueError if a segmentor cannot guide or filter here."""
        if self.settings.needs_segmentor:
            SegmentorCritic(segmentor=segmentor, num_classes=self.generator.num_classes)
        guide = self._guide(segmentor)
        if guide is not None:
            self.generator.check_guidance(guide)

    def __call__(self, request: SynthesisRequest) -> SynthesisResult:
        """Generate this share of a round.

        Samples that fail, have values that are not finite, or are dropped by the filter are left out; the statistics
        count them, see :mod:`mmsynth.online.statistics`. The global random state is left alone.
        """
        segmentor = None
        if self.settings.needs_segmentor:
            assert request.segmentor is not None
            segmentor = self._on_device(request.segmentor)
        with isolated_random_state(derive_seed(self.settings.seed, 'round', request.round)):
            dataset = self.settings.masks.dataset(segmentor)
            requests = self.settings.masks.requests(request.round, len(dataset))[self._share[0]::self._share[1]]
            guide = self._guide(segmentor)
            pixel_filter = None if self._filter is None else self._filter.build(request.round, segmentor)
            statistics: dict[str, float] = dict(requested=len(requests), not_finite=0)
            failures: Counter[str] = Counter()
            if self._share[0] == 0:
                requests = progress_bar(requests, unit='img', title=f'synthesis round {request.round}')
            loaded = _load_samples(dataset, requests, failures)
            samples = []
            for batch in batches_of_one_shape(loaded, lambda item: tuple(item[1].gt_sem_seg.shape), self._batch_size):
                samples += self._generate(batch, guide, pixel_filter, statistics, failures)
        return SynthesisResult(request.round, samples, dict(statistics, failed=dict(failures)))

    def _generate(self, batch: Sequence[tuple[Request, SynthDataSample]], guide: Guidance | None,
                  pixel_filter: ClassLossFilter | None, statistics: dict[str, float],
                  failures: Counter[str]) -> list[Sample]:
        """Generate a batch and return the good samples. If it fails, each is tried alone."""
        try:
            generated = generate_batch(self.generator, batch, guide=guide, entry=self.settings.pool['generator'])
            finite = [(request.id, found) for (request, _), found in zip(batch, generated) if found.finite]
            results = [None] * len(finite)
            if pixel_filter is not None and finite:
                results = pixel_filter([found.image for _, found in finite], [found.mask for _, found in finite])
        except Exception as error:
            if len(batch) > 1:
                return [sample for item in batch
                        for sample in self._generate([item], guide, pixel_filter, statistics, failures)]
            _count_failure(error, failures)
            return []
        statistics['not_finite'] += len(generated) - len(finite)
        samples = []
        for (id, found), result in zip(finite, results):
            count_sample(statistics, found.details['guidance'], None if result is None else result.entry)
            if result is None:
                samples.append(Sample(id, found.image, found.mask, found.details))
            elif result.entry['keep']:
                samples.append(Sample(id, found.image, found.mask, dict(found.details, filter=result.entry),
                                      filtered=result.label, weight=result.weight))
        return samples

    def _on_device(self, segmentor: nn.Module) -> nn.Module:
        """Return the segmentor itself, or a copy of it where the generator runs on another device."""
        found, wanted = next(segmentor.parameters()).device, torch.device(self._device)
        if found.type == wanted.type and wanted.index in (None, found.index):
            return segmentor
        return copy.deepcopy(segmentor).to(wanted)

    def _guide(self, segmentor: nn.Module | None) -> Guidance | None:
        if self.settings.guidance is None:
            return None
        critic = self._critic or SegmentorCritic(segmentor=segmentor)
        return MODELS.build(self.settings.guidance | dict(critic=critic)).to(self._device)


class RoundFilter:
    """Build the pixel filter of each round, by how well the segmentor in training fits each class at that time.

    Args:
        options: ``num_images``: real images, drawn anew each round, that the class losses are measured on, 32 by
            default. ``class_losses``: a file that fixes them. ``segmentor``: config of a frozen critic of images, which
            then predicts in the place of the segmentor in training. The rest are options of
            :class:`~mmsynth.filtering.ClassLossFilter`; ``unseen_classes`` is 'keep' by default, because a few images
            may lack a class.
        real: Config of the real data set; not needed where ``class_losses`` is given.
        seed: The run's.
        batch_size: Images predicted together.
        device: Where a frozen critic runs.

    Raises:
        ValueError: If there is nothing to measure class losses on, or ``segmentor`` does not predict on images.
    """

    def __init__(self, options: Mapping[str, Any], real: Mapping[str, Any] | None, *, seed: int, batch_size: int = 4,
                 device: torch.device | str = 'cpu') -> None:
        self._rule = dict(unseen_classes='keep') | {key: options[key] for key in RULE_OPTIONS if key in options}
        self._num_images = options.get('num_images', 32)
        self._seed, self._batch_size, self._device = seed, batch_size, device
        self._fixed: ClassLosses | None = None
        self._leaves: list[Any] = []
        if options.get('class_losses') is not None:
            self._fixed = ClassLosses.read(options['class_losses'])
        elif real is not None:
            self._leaves = leaf_datasets(build_dataset(real))
        else:
            raise ValueError('`filter` measures class losses on real images and there is no real data set; give '
                             '`filter.class_losses`.')
        frozen = options.get('segmentor')
        self._frozen: Critic | None = None if frozen is None else MODELS.build(frozen).to(device)
        if self._frozen is not None and self._frozen.input_type != 'images':
            raise ValueError(f'`filter.segmentor` must predict on images, got {type(self._frozen).__name__}, which '
                             f'takes {self._frozen.input_type}; use a mmsynth.SegmentorCritic.')

    def build(self, round: int, segmentor: nn.Module | None) -> ClassLossFilter:
        """Build the filter of a round, by the segmentor as it is now.

        Raises:
            ValueError: If segmentor and data do not fit each other.
        """
        critic, device = self._frozen, self._device
        if critic is None:
            critic = SegmentorCritic(segmentor=segmentor)
            device = critic.device
        losses = self._measure(round, critic, device) if self._fixed is None else self._fixed
        if self._frozen is None:  # fixed losses are the measure, whichever segmentor they came from
            losses = ClassLosses(losses.class_names, losses.mean_loss, losses.pixels)
        return ClassLossFilter(critic, losses, **self._rule)

    @torch.no_grad()
    def _measure(self, round: int, critic: Critic, device: torch.device | str) -> ClassLosses:
        """Measure the class losses of a critic on a few real images."""
        names = class_names(self._leaves, critic.num_classes, '`filter`, the real data set')
        total = sum(map(len, self._leaves))
        rng = np.random.default_rng(derive_seed(self._seed, 'class losses', round))
        places = rng.permutation(total)[:self._num_images].tolist()
        meter = ClassLossMeter(len(names))
        for batch in batches_of_one_shape(real_pairs(self._leaves, places), lambda pair: pair[0].shape,
                                          self._batch_size):
            images, labels = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*batch))
            meter.update(pixel_losses(critic.predict_logits(images.permute(0, 3, 1, 2).float() / 255), labels), labels)
        return meter.compute(names)


def synthesizer_arguments(cfg: Config, settings: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Collect the arguments of :func:`build_synthesizer` as plain values.

    Args:
        cfg: The training's config; of it the segmentor is built, and what it imports is imported.
        settings: Arguments of :class:`~mmsynth.online.settings.RoundSettings`.
        options: The other arguments of :class:`~mmsynth.online.synthesizer.RoundSynthesizer`; ``device`` is the
            process's.
    """
    return ConfigDict(
        options,
        settings=settings,
        segmentor={key: cfg[key] for key in ('model', 'data_preprocessor') if cfg.get(key) is not None},
        imports=(cfg.get('custom_imports') or {}).get('imports', ()),
        default_scope=cfg.get('default_scope', 'mmseg')).to_dict()


def build_synthesizer(settings: Mapping[str, Any], *, segmentor: Mapping[str, Any] | None,
                      imports: str | Sequence[str] = (), default_scope: str = 'mmseg',
                      real: Mapping[str, Any] | None = None, batch_size: int = 4,
                      device: torch.device | str = 'cpu') -> Synthesizer:
    """Build the synthesizer of a worker process, for requests that hold weights.

    Args:
        settings: Arguments of :class:`~mmsynth.online.settings.RoundSettings`.
        segmentor: A segmentation config, at least its ``model``: the segmentor in training. It is built only where the
            settings need one.
        imports: Modules that the training's config imports.
        default_scope: The training's.
        real, batch_size, device: See :class:`~mmsynth.online.synthesizer.RoundSynthesizer`.

    Raises:
        ValueError, FileNotFoundError: As settings and synthesizer do, or if the segmentor cannot guide.
    """
    init_default_scope(default_scope)
    names = [imports] if isinstance(imports, str) else list(imports)
    import_modules_from_strings(names, allow_failed_imports=True)  # what the training has done without, this can too
    synthesizer = RoundSynthesizer(RoundSettings(**settings), real=real, batch_size=batch_size, device=device)
    if not synthesizer.settings.needs_segmentor:
        return synthesizer
    model = SegmentorCritic(segmentor).segmentor
    synthesizer.check(model)
    model.to(device)

    def with_weights(request: SynthesisRequest) -> SynthesisResult:
        if request.weights is not None:
            load_state_dict(model, request.weights, source='of the segmentor in training')
            request = replace(request, segmentor=model, weights=None)
        return synthesizer(request)

    return with_weights


def _load_samples(dataset: Any, requests: Iterable[Request],
                  failures: Counter[str]) -> Iterator[tuple[Request, SynthDataSample]]:
    """Load the masks of requests, each under its own random state: what is loaded beside it does not matter."""
    for request in requests:
        try:
            with isolated_random_state(request.seed):
                sample = load_sample(dataset, request)
        except Exception as error:  # one mask must not cost the round
            _count_failure(error, failures)
        else:
            yield request, sample


def _count_failure(error: Exception, failures: Counter[str]) -> None:
    """Count the error of a mask, and log the traceback of a round's first."""
    if not failures:
        print_log(f'a mask of a synthesis round failed:\n{traceback.format_exc()}', 'current', logging.WARNING)
    failures[describe(error)] += 1
