"""Hashes by which results of a filter are known again."""
import hashlib
import json
from typing import Any

import numpy as np
import torch

from mmsynth.guidance import Critic, SegmentorCritic
from mmsynth.host import normalisation_of

_LENGTH = 16  # hex digits, as in all hashes of a manifest


def label_hash(mask: np.ndarray) -> str:
    """Hash of a mask (H, W), uint8: of its shape and its values, not of the file that holds them."""
    digest = hashlib.sha256(f'{mask.shape[0]}x{mask.shape[1]}:'.encode())
    digest.update(np.ascontiguousarray(mask).data)
    return digest.hexdigest()[:_LENGTH]


def segmentor_identity(critic: Critic) -> str:
    """Hash of what a critic predicts with: its weights, and a segmentor's normalisation and mode of inference."""
    if isinstance(critic, SegmentorCritic):
        model: Any = critic.segmentor
        to_rgb, mean, std = normalisation_of(model.data_preprocessor)
        digest = hashlib.sha256(json.dumps(model.test_cfg, sort_keys=True, default=str).encode())
        if mean is not None and std is not None:
            digest.update(f'{to_rgb} {mean.flatten().tolist()} {std.flatten().tolist()}'.encode())
    else:
        model, digest = critic, hashlib.sha256(type(critic).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}:'.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:_LENGTH]
