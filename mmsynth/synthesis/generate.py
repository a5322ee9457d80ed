"""Masks of a data set → generated images, with all that a pool records of them.

Legend: H W pixels.
"""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset

from mmsynth.guidance import Guidance
from mmsynth.models.generators import BaseGenerator
from mmsynth.structures import SynthDataSample
from mmsynth.utils.batches import batches_of_one_shape


@dataclass(frozen=True)
class Request:
    """One image to generate.

    Attributes:
        id: Of the sample in the pool: the mask's id, and the repeat's number from the second on.
        index: Of the mask in its data set.
        seed: Of the sample.
        repeat: Number of the image among those of its mask, from 0.
    """

    id: str
    index: int
    seed: int
    repeat: int = 0


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
    """Requests with their loaded samples, in batches of one mask size."""
    loaded = ((request, load_sample(dataset, request)) for request in requests)
    return batches_of_one_shape(loaded, lambda item: tuple(item[1].gt_sem_seg.shape), batch_size)


def load_sample(dataset: BaseDataset, request: Request) -> SynthDataSample:
    """The sample of a request. The pipeline is told the repeat's number: each may get a reference of its own.

    A wrapper such as ConcatDataset has no pipeline to tell; its repeats are generated with one reference.
    """
    pipeline = getattr(dataset, 'pipeline', None)
    if request.repeat == 0 or pipeline is None:
        return dataset[request.index]['data_samples']
    return pipeline(dataset.get_data_info(request.index) | dict(repeat=request.repeat))['data_samples']


def generate_batch(generator: BaseGenerator, batch: Sequence[tuple[Request, SynthDataSample]], *,
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
