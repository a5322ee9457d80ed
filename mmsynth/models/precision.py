"""The dtype that a generator's network computes in.

Weights that train, schedules, losses, the arithmetic of guidance and the decode of the images that are kept stay in
float32.
"""
from typing import Literal

import torch

Precision = Literal['float32', 'bfloat16', 'float16']
DTYPES: dict[Precision, torch.dtype] = {
    'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def check_precision(name: str | None) -> None:
    """Raise ValueError unless a name is None or one of :data:`DTYPES`."""
    if name is not None and name not in DTYPES:
        raise ValueError(f'`dtype` must be one of {", ".join(DTYPES)}, or None for what suits the device, got '
                         f'{name!r}.')


def dtype_on(name: Precision | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; for None bfloat16 on a GPU that computes in it, elsewhere float32."""
    if name is not None:
        return DTYPES[name]
    return torch.bfloat16 if device.type == 'cuda' and torch.cuda.is_bf16_supported() else torch.float32
