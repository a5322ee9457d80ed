"""The released networks' tensors, recomputed from the files in tests/parity/data."""
from pathlib import Path

import pytest
import replay

DATA = Path(__file__).parent / 'data'
FILES = ('crfm_LD', 'crfm_l2_LI', 'crfm_synth_C', 'mmdit_forward_dual', 'mmdit_forward_plain')


@pytest.mark.parametrize('name', FILES)
def test_released_tensors_are_reproduced(name: str) -> None:
    _, errors, bar = replay.replay(DATA / f'{name}.safetensors')
    assert errors and max(errors.values()) <= bar, errors


def test_the_trajectories_differ_with_and_without_correction() -> None:
    """A replay that ignored the guidance would pass on files whose correction does nothing; these do something."""
    outputs, _, bar = replay.replay(DATA / 'crfm_LD.safetensors')
    assert (outputs['final_latents_crfm'] - outputs['final_latents_plain']).abs().max() > 10 * bar


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    path = tmp_path / 'other.safetensors'
    save_file({'io/x': torch.zeros(1)}, path, metadata={'kind': 'something'})
    with pytest.raises(ValueError, match="kind 'something' is not replayed; known: mmdit_forward, crfm_trajectory"):
        replay.replay(path)
