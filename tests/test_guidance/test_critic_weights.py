"""The weights files behind critics that are made of others."""
from pathlib import Path

import pytest

from mmsynth.guidance.critic_weights import critic_checkpoints, critic_hashes
from mmsynth.utils.hashes import file_hash

FCN, UNET = dict(type='mmsynth.SegmentorCritic', checkpoint='fcn.pth'), dict(type='Other', checkpoint='unet.pth')
REDUCIBLE = dict(type='mmsynth.ReducibleLossCritic', teacher=UNET, learner=FCN)


@pytest.mark.parametrize('critic, files', [
    (FCN, ['fcn.pth']),
    (dict(type='mmsynth.CriticEnsemble', critics=[FCN, UNET]), ['fcn.pth', 'unet.pth']),
    (REDUCIBLE, ['unet.pth', 'fcn.pth']),
    (dict(type='mmsynth.AugmentedCritic', looks=2, critic=REDUCIBLE), ['unet.pth', 'fcn.pth']),
    (dict(type='mmsynth.CriticEnsemble', critics=[dict(type='mmsynth.ModuleCritic', module='net'), FCN]),
     [None, 'fcn.pth']),
])
def test_every_member_counts(critic: dict, files: list) -> None:
    assert critic_checkpoints(critic) == files


def test_hashes_are_of_the_files_that_are_there(tmp_path: Path) -> None:
    weights = tmp_path / 'fcn.pth'
    weights.write_bytes(b'weights')
    critic = dict(REDUCIBLE, learner=dict(FCN, checkpoint=str(weights)))
    assert critic_hashes(critic) == [None, file_hash(weights)]
