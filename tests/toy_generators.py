"""Synthesizers for the tests of worker processes: they are quick to build, and fail when told to."""
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsynth.online.request import SynthesisRequest, SynthesisResult, Synthesizer
from mmsynth.online.sample import Sample

HERE = 'toy_generators'


def sample(id: str, value: int = 0, **changes: Any) -> Sample:
    """A sample of one colour, half of its mask unlabelled."""
    mask = np.full((4, 6), 255, np.uint8)
    mask[:2] = value % 3
    return Sample(**dict(
        id=id, image=np.full((4, 6, 3), value, np.uint8), mask=mask,
        details=dict(source_mask='tile.png', prompt='p', seed=value,
                     generator=dict(type='toy', config_sha256='ab', weights_sha256=None))) | changes)


def build(faults: Mapping[int, str] | None = None, sign: str = '') -> Synthesizer:
    """A synthesizer of two samples per round.

    Args:
        faults: What happens in which round: 'raise', 'exit', 'hang', or statistics that are 'no json' or 'nan'.
        sign: A file that is made before it hangs.
    """
    def synthesize(request: SynthesisRequest) -> SynthesisResult:
        statistics: dict[str, Any] = dict(pid=os.getpid(), nice=os.nice(0), threads=torch.get_num_threads())
        if request.weights is not None:
            statistics['weights'] = {name: value.sum().item() for name, value in request.weights.items()}
        fault = (faults or {}).get(request.round)
        if fault == 'raise':
            print('output of a library')
            raise ValueError(f'mask {request.round} cannot be\nloaded')
        if fault == 'exit':
            os._exit(137)
        if fault == 'hang':
            Path(sign).touch()
            time.sleep(600)
        if fault in ('no json', 'nan'):
            statistics['extra'] = np.zeros(2) if fault == 'no json' else float('nan')
        samples = [sample(f'{request.round * 2 + place:08d}', request.round + place) for place in range(2)]
        return SynthesisResult(request.round, samples, statistics)

    return synthesize


def no_checkpoint(path: str) -> Synthesizer:
    """Fail as a generator does whose weights are not there."""
    raise FileNotFoundError(f'checkpoint {path} does not exist; give a .pth or .safetensors file.')
