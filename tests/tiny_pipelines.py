"""Tiny generators with the pipelines made of them, masks and references, for the tests of pipelines."""
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_generator import CLASSES, SIZE, todsynth
from tiny_tisynth import tisynth

from mmsynth.models import BaseGenerator
from mmsynth.pipelines import TISynthPipeline, TODSynthPipeline
from mmsynth.utils import derive_seed

PIPELINES = dict(todsynth=TODSynthPipeline, tisynth=TISynthPipeline)


def generator(kind: str, **changes) -> BaseGenerator:
    """A tiny generator with random weights that knows the names of its classes."""
    model = dict(todsynth=todsynth, tisynth=tisynth)[kind](**changes)
    model.dataset_meta = dict(classes=tuple(CLASSES))
    return model


def pipeline(kind: str, **changes) -> TODSynthPipeline | TISynthPipeline:
    return quiet(PIPELINES[kind].from_generator(generator(kind, **changes)))


def quiet(pipe: TODSynthPipeline | TISynthPipeline) -> TODSynthPipeline | TISynthPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def masks(count: int = 2, size: int = SIZE) -> list[NDArray[np.int64]]:
    """Masks of three classes, with unlabelled pixels."""
    return [np.random.default_rng(number).choice([0, 1, 2, 255], (size, size)) for number in range(count)]


def references(kind: str, count: int = 2) -> dict[str, list[NDArray[np.uint8]]]:
    """What a call needs beside masks: of TISynth references, of another size than the masks."""
    rng = np.random.default_rng(9)
    return dict(reference=[rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(count)]) \
        if kind == 'tisynth' else {}


def seeded(seed: int = 0, count: int = 2) -> list[torch.Generator]:
    """The generators of the seeds that :func:`mmsynth.apis.generate` gives the masks of a call."""
    return [torch.Generator().manual_seed(derive_seed(seed, 'generate', number)) for number in range(count)]


def pixels(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image) for image in images])
