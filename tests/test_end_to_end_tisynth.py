"""TISynth by the commands that a user types: a pretrained folder, references, mmseg's tools/train.py, a guided pool."""
from pathlib import Path

import pytest
import torch
from small_run import NAMES, ROOT, SmallRun, run

from mmsynth.pool import Pool
from mmsynth.utils import read_checkpoint

pytestmark = pytest.mark.process

CONFIG = """
_base_ = '{base}'
prompt_encoder = dict(type='mmsynth.CLIPTextEncoder', pretrained='{sd15}')
model = dict(
    _delete_=True,
    type='mmsynth.TISynth',
    network=dict(type='mmsynth.ControlledUNet', pretrained='{sd15}', mask_channels=3, mask_factor=8),
    latent_codec=dict(type='mmsynth.VAECodec', pretrained='{sd15}'),
    label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3),
    text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir='{cache}'),
    num_steps=3)
custom_hooks = []
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='mmsynth.LoadSegMap'),
    dict(type='mmsynth.BuildPrompt'),
    dict(type='mmsynth.ReferenceAugment'),
    dict(type='mmsynth.PackSynthInputs')]))
synthesis = dict(dataset=dict(pipeline=[
    dict(type='mmsynth.LoadSegMap'),
    dict(type='mmsynth.BuildPrompt'),
    dict(type='mmsynth.PickReference', folder='{images}'),
    dict(type='mmsynth.PackSynthInputs')]))
"""


@pytest.fixture(scope='module')
def config(small_run: SmallRun, tiny_sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('tisynth_run')
    path = folder / 'tisynth.py'
    path.write_text(CONFIG.format(base=small_run.config_file.as_posix(), sd15=tiny_sd15.as_posix(),
                                  cache=(folder / 'cache').as_posix(), images=(small_run.data / 'images').as_posix()))
    return path


@pytest.fixture(scope='module')
def checkpoint(config: Path) -> Path:
    """Prompts encoded, then two iterations of training."""
    run(ROOT / 'tools' / 'encode_prompts.py', config, cwd=config.parent)
    run(ROOT / 'tools' / 'train.py', config, '--work-dir', config.parent / 'work', cwd=config.parent)
    return config.parent / 'work' / 'iter_2.pth'


def test_a_checkpoint_holds_what_was_trained(checkpoint: Path) -> None:
    """The frozen U-Net and VAE stay in their folder."""
    trained = read_checkpoint(checkpoint)
    assert not [name for name in trained if name.startswith(('network.unet.', 'latent_codec.vae.'))]
    parts = {name.split('.')[1] for name in trained if name.startswith('network.')}
    assert parts == {'fusions', 'mask_branch', 'reference_branch'}
    assert all(value.isfinite().all() for value in trained.values())
    zeros = [value for name, value in trained.items() if name.endswith('reference_attn.to_out.0.weight')]
    assert zeros and all(torch.any(value) for value in zeros), 'projections that start at zero have moved'


def test_the_same_tool_generates_with_it_guided(checkpoint: Path, config: Path) -> None:
    run(ROOT / 'tools' / 'synthesize.py', config, checkpoint, '--out-dir', 'pool', cwd=config.parent)
    records = Pool.open(config.parent / 'pool').records
    assert [record.id for record in records] == [f'masks/{name}' for name in NAMES]
    assert all(record.generator['type'] == 'TISynth' and record.guidance['name'] == 'CRFM' for record in records)
    assert all(Path(record.reference).stem != Path(record.source_mask).stem for record in records)
