"""Masks of a data set → generated images, with all that a pool records of them.

Legend: H W pixels.
"""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from mmengine.dataset import BaseDataset

from mmsynth.guidance import Guidance
from mmsynth.structures import SynthDataSample
from mmsynth.utils.batches import batches_of_one_shape


class Generator(Protocol):
    """What synthesis asks of a generator: any torch module with these, such as TODSynth, TISynth, or one of your own.

    Attributes:
        num_classes: Number of classes K; masks hold 0 … K - 1, and 255 where unlabelled.
    """

    num_classes: int

    def data_preprocessor(self, data: dict[str, Any]) -> dict[str, Any]:
        """Move a batch ``dict(data_samples=[...])`` to the generator's device, as mmengine's models do."""

    def synthesize(self, data_samples: Sequence[SynthDataSample], seeds: Sequence[int], *,
                   guidance: Guidance | None = None) -> Sequence[SynthDataSample]:
        """Generate an image for every sample's ``gt_sem_seg``, which depends on its own seed, not on the batch.

        Returns:
            The samples, each with ``generated_img`` (3, H, W), uint8, RGB, on the CPU; under guidance with the metainfo
            ``guidance_trace``; and optionally with ``finite``, False for an image that is to be left out.
        """

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError if a guidance does not fit the generator."""


GENERATOR_MEMBERS = ('num_classes', 'data_preprocessor', 'synthesize', 'check_guidance')


@dataclass(frozen=True)
class Request:
    """One image to generate.

    Attributes:
        id: Of the sample in the pool: the mask's id, and the repeat's number from the second on.
        index: Of the mask in its data set.
        seed: Of the sample.
        repeat: Number of the image among those of its mask, from 0.
        place: Its place among all requests of the run.
    """

    id: str
    index: int
    seed: int
    repeat: int = 0
    place: int = 0


class GeneratedSample(NamedTuple):
    """What came of a request.

    Attributes:
        image: (H, W, 3), uint8, RGB.
        mask: (H, W), uint8, class indices, 255 unlabelled.
        details: The other fields of the pool's record that synthesis fills, by name.
        finite: Whether all that was decoded were numbers; an image that is not is black or worse in places.
    """

    image: np.ndarray
    mask: np.ndarray
    details: dict[str, Any]
    finite: bool


def load_batches(dataset: BaseDataset, requests: Sequence[Request],
                 batch_size: int) -> Iterator[list[tuple[Request, SynthDataSample]]]:
    """Requests with their loaded samples, in batches of one mask size.

    Batches do not reach over every ``batch_size``-th request. So of the requests of a run, each is in a batch with the
    same others, whoever generates them: rounding may depend on what is computed together.
    """
    for start in range(0, len(requests), batch_size):
        loaded = [(request, load_sample(dataset, request)) for request in requests[start:start + batch_size]]
        yield from batches_of_one_shape(loaded, lambda item: tuple(item[1].gt_sem_seg.shape), batch_size)


def load_sample(dataset: BaseDataset, request: Request) -> SynthDataSample:
    """Load the sample of a request. The pipeline is given the repeat's number: each may get a reference of its own.

    A wrapper such as ConcatDataset has no pipeline; its repeats are generated with one reference.
    """
    pipeline = getattr(dataset, 'pipeline', None)
    if request.repeat == 0 or pipeline is None:
        return dataset[request.index]['data_samples']
    return pipeline(dataset.get_data_info(request.index) | dict(repeat=request.repeat))['data_samples']


def generate_batch(generator: Generator, batch: Sequence[tuple[Request, SynthDataSample]], *,
                   guide: Guidance | None, entry: Mapping[str, str | None]) -> list[GeneratedSample]:
    """Generate a batch of one mask size.

    Args:
        generator: The generator.
        batch: Requests and their loaded samples.
        guide: Its guidance.
        entry: What records say of the generator, see :class:`~mmsynth.pool.PoolRecord`.
    """
    data = generator.data_preprocessor(dict(data_samples=[sample for _, sample in batch]))
    seeds = [request.seed for request, _ in batch]
    samples = generator.synthesize(data['data_samples'], seeds, guidance=guide)
    return [GeneratedSample(
        image=sample.generated_img.data.permute(1, 2, 0).numpy(),
        mask=sample.gt_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8),
        details=dict(
            source_mask=str(sample.seg_map_path),
            prompt=sample.get('prompt', ''),
            seed=seed,
            reference=sample.get('reference_path'),
            mask_origin=sample.get('mask_origin'),
            generator=dict(entry),
            guidance=None if guide is None else dict(name=type(guide).__name__, trace=sample.guidance_trace)),
        finite=sample.get('finite', True)) for seed, sample in zip(seeds, samples)]
