"""Measures variants of guidance on one set of trained parts, all on the same masks and noise."""
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isnan
from statistics import fmean
from typing import Any

import numpy as np
import torch
from ablation.plan import AblationOptions, TrainedParts, Variant
from ablation.store import MASKS, AblationStore, Measurement
from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from mmsynth.apis.synthesize import Request, list_requests, load_batches
from mmsynth.evaluation import ConsistencyMeter, FeatureSet, class_distances, feature_distance, read_with_features
from mmsynth.guidance import SegmentorCritic
from mmsynth.guidance.base import Critic, Guidance
from mmsynth.models.generators import BaseGenerator
from mmsynth.registry import MODELS
from mmsynth.structures import SynthDataSample
from mmsynth.synthesis.build import build_dataset, build_generator, load_config
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.utils.hashes import config_hash, file_hash
from mmsynth.visualization import colorize

Batch = list[tuple[Request, SynthDataSample]]
_NUM_PICTURES = 6


class AblationBench:
    """A generator, a critic and a judge, and the masks that they are measured on.

    What decides the figures is read and checked at once (:attr:`settings`); networks are built when first needed.

    Args:
        parts: The trained parts.
        options: What is measured.

    Attributes:
        requests: Per seed the images to generate.
        settings: All that the figures depend on beside variant and seed, JSON values.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the config does not hold what is needed, or judge and critic are one.
    """

    def __init__(self, parts: TrainedParts, options: AblationOptions) -> None:
        self.parts = parts
        self.device = options.device
        self.num_real = options.num_real
        self.cfg = load_config(parts.config)
        _check_config(self.cfg)
        self.batch_size: int = options.batch_size or self.cfg.synthesis.get('batch_size', 4)
        self.dataset = build_dataset(self.cfg.synthesis.dataset)
        self.requests = {seed: list_requests(self.dataset, seed, 1, options.limit) for seed in parts.seeds}
        self.settings = self._describe() | dict(limit=options.limit)

    @cached_property
    def generator(self) -> BaseGenerator:
        return build_generator(self.cfg, self.parts.checkpoint, self.device)

    @cached_property
    def critic(self) -> Critic:
        return MODELS.build(self.cfg.synthesis.guidance.critic).to(self.device)

    @cached_property
    def judge(self) -> SegmentorCritic:
        judge = SegmentorCritic(str(self.parts.judge_config), str(self.parts.judge_checkpoint)).to(self.device)
        judge.check_num_classes(self.generator.num_classes)
        return judge

    @cached_property
    def real_features(self) -> FeatureSet:
        """What the judge sees in real images, cut to the size of the masks.

        The generator's training set is gone through evenly, by its own pipeline; the random transforms are drawn under
        a seed of the image's own, so that the images are always the same.
        """
        dataset = build_dataset(self.cfg.train_dataloader.dataset)
        count = min(self.num_real, len(dataset))
        size = self.dataset[0]['data_samples'].gt_sem_seg.shape
        features = FeatureSet(self.generator.num_classes)
        for index in (number * len(dataset) // count for number in range(count)):
            with isolated_random_state(derive_seed(0, 'real', index)):
                item = dataset[index]
            data = self.generator.data_preprocessor(
                dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
            images = _cut(data['inputs'] / 2 + 0.5, size)
            masks = _cut(data['data_samples'][0].gt_sem_seg.data, size)
            features.add(read_with_features(self.judge, images, masks)[1])
        return features

    def check(self, variant: Variant) -> None:
        """Raise ValueError if a variant's guidance does not fit the generator or the length of its run."""
        guidance = self.build_guidance(variant)
        if guidance is not None:
            guidance.check_run(self.generator.num_steps)

    def build_guidance(self, variant: Variant) -> Guidance | None:
        """The guidance of a variant, by the config's critic (through its decoder, if the config has one)."""
        if variant.settings is None:
            return None
        own = self.cfg.synthesis.guidance
        decoder = dict(decoder=own.decoder) if own.get('decoder') else {}
        return MODELS.build(variant.settings | decoder | dict(critic=self.critic)).to(self.device)

    def measure(self, variant: Variant, seed: int, store: AblationStore, bar: tqdm) -> Measurement:
        """Generate images for all masks under one variant and measure the images; a few of them are stored to look at.

        Args:
            variant: The variant.
            seed: Of the noise.
            store: Where the pictures go.
            bar: Moved on by one for every image.
        """
        guidance = self.build_guidance(variant)
        tally = _Tally(self.judge, self.critic)
        shown, pictures = _spread(self.requests[seed]), []
        for batch in load_batches(self.dataset, self.requests[seed], self.batch_size):
            start = time.perf_counter()
            samples = self._generate(batch, guidance)
            tally.seconds += time.perf_counter() - start
            images = tally.add(samples)
            pictures += [image for (request, _), image in zip(batch, images) if request in shown]
            bar.update(len(batch))
        store.write_pictures(variant.name, seed, pictures)
        return tally.result(variant, seed, self.real_features, self.dataset.metainfo['classes'])

    def write_masks(self, seed: int, store: AblationStore) -> None:
        """Store the masks of the pictures that :meth:`measure` stores."""
        masks = [self.dataset[request.index]['data_samples'].gt_sem_seg.data[0].numpy()
                 for request in _spread(self.requests[seed])]
        palette = self.dataset.metainfo['palette']
        store.write_pictures(MASKS, seed, [colorize(mask, palette) for mask in masks])

    def release(self) -> None:
        """Forget the networks; they are built again when needed."""
        for name in ('generator', 'critic', 'judge', 'real_features'):
            self.__dict__.pop(name, None)

    def _generate(self, batch: Batch, guidance: Guidance | None) -> list[SynthDataSample]:
        data = self.generator.data_preprocessor(dict(data_samples=[sample for _, sample in batch]))
        return self.generator.synthesize(
            data['data_samples'], [request.seed for request, _ in batch], guidance=guidance)

    def _describe(self) -> dict[str, Any]:
        own, parts = self.cfg.synthesis.guidance.to_dict(), self.parts
        critic = _weights(own)
        judge = file_hash(parts.judge_checkpoint)
        if judge in critic.values():
            raise ValueError(f'the judge {parts.judge_checkpoint} is the critic that guides; give another segmentor: a '
                             'critic finds in the images what it asked for.')
        return dict(
            generator=dict(config_sha256=config_hash(self.cfg.model), weights_sha256=file_hash(parts.checkpoint)),
            critic=dict(settings=own['critic'], decoder=own.get('decoder'), weights_sha256=critic),
            judge=dict(config_sha256=config_hash(load_config(parts.judge_config).model), weights_sha256=judge),
            masks_sha256=config_hash(self.cfg.synthesis.dataset),
            real_sha256=config_hash(self.cfg.train_dataloader.dataset),
            num_real=self.num_real,
            batch_size=self.batch_size)


class _Tally:
    """What adds up over one variant's images."""

    def __init__(self, judge: SegmentorCritic, critic: Critic) -> None:
        self.seconds = 0.0
        self._judge, self._critic = judge, critic
        self._by_judge, self._by_critic = ConsistencyMeter(judge.num_classes), ConsistencyMeter(critic.num_classes)
        self._features = FeatureSet(judge.num_classes)
        self._changes: list[float] = []

    @torch.no_grad()
    def add(self, samples: list[SynthDataSample]) -> list[np.ndarray]:
        """Take in generated samples; their images (H, W, 3), uint8, RGB."""
        images = torch.stack([sample.generated_img.data for sample in samples])  # (B, 3, H, W), uint8
        masks = torch.stack([sample.gt_sem_seg.data[0] for sample in samples]).long()  # (B, H, W)
        pixels = images.to(masks.device).float() / 255
        readings, pooled = read_with_features(self._judge, pixels, masks)
        self._by_judge.update(readings, masks)
        self._features.add(pooled)
        if self._critic.input_type == 'images':
            with self._critic.frozen_eval():
                self._by_critic.update(self._critic.predict_logits(pixels).argmax(1), masks)
        self._changes += [entry['relative_change'] for sample in samples for entry in sample.guidance_trace
                          if 'relative_change' in entry]
        return list(images.permute(0, 2, 3, 1).numpy())

    def result(self, variant: Variant, seed: int, real: FeatureSet, classes: tuple[str, ...]) -> Measurement:
        """The measurement of all that was taken in."""
        features, distances = self._features, class_distances(real, self._features)
        sees_images = self._critic.input_type == 'images'
        return Measurement(
            rule=variant.rule,
            steps=variant.steps,
            seed=seed,
            images=len(features),
            real_images=len(real),
            judge_miou=100 * self._by_judge.compute().mean_iou,
            critic_miou=100 * self._by_critic.compute().mean_iou if sees_images else None,
            frechet=feature_distance(real, features),
            class_frechet={name: None if isnan(value) else value for name, value in zip(classes, distances)},
            class_images=dict(zip(classes, features.class_counts)),
            class_real_images=dict(zip(classes, real.class_counts)),
            relative_change=fmean(self._changes) if self._changes else None,
            seconds_per_image=self.seconds / len(features))


def _spread(requests: Sequence[Request]) -> list[Request]:
    """The few that are kept to look at."""
    return list(requests[::max(1, len(requests) // _NUM_PICTURES)][:_NUM_PICTURES])


def _cut(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle of images (..., H, W), at most ``size`` (..., height, width)."""
    height, width = (min(own, given) for own, given in zip(pixels.shape[-2:], size[-2:]))
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    return pixels[..., top:top + height, left:left + width]


def _weights(settings: object) -> dict[str, str]:
    """The hashes of all ``checkpoint`` files that nested settings name."""
    if isinstance(settings, (list, tuple)):
        settings = dict(enumerate(settings))
    if not isinstance(settings, Mapping):
        return {}
    found = {}
    for key, value in settings.items():
        found |= {str(value): file_hash(value)} if key == 'checkpoint' and value else _weights(value)
    return found


def _check_config(cfg: Config) -> None:
    synthesis = cfg.get('synthesis') or {}
    problems = [f'`{name}`' for name, there in (
        ('synthesis.dataset', 'dataset' in synthesis),
        ('synthesis.guidance.critic', 'critic' in (synthesis.get('guidance') or {})),
        ('train_dataloader', 'train_dataloader' in cfg)) if not there]
    if problems:
        raise ValueError(f'{cfg.filename}: it has no {" and no ".join(problems)}; an ablation needs the masks to '
                         'generate, the critic that guides, and the real images to compare with, as '
                         'projects/demo/configs/todsynth.py names them.')
