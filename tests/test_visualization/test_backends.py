"""Pictures and scalars of generators and of online synthesis reach every backend of the host's visualizer."""
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from online_run import hook_config, online_config, train_online
from PIL import Image
from small_run import SmallRun, train

pytestmark = pytest.mark.slow
PACKAGES = dict(TensorboardVisBackend='tensorboard', WandbVisBackend='wandb')
MISSING = {name: importlib.util.find_spec(package) is None for name, package in PACKAGES.items()}
TENSORBOARD, WANDB = (
    pytest.mark.skipif(MISSING[name], reason=f'needs {package}: pip install {package}')
    for name, package in PACKAGES.items())
BACKENDS = [dict(type='LocalVisBackend'), *(
    dict(type=name) | (dict(init_kwargs=dict(mode='offline')) if name == 'WandbVisBackend' else {})
    for name in PACKAGES if not MISSING[name])]
PICTURES = {'preview', 'online_samples', 'online_classes'}
SCALARS = {'loss', 'online/published', 'online/live', 'online/seconds', 'online/loss_before'}


@pytest.fixture(scope='module')
def runs(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two trainings, of a generator with previews and of a segmentor with online synthesis."""
    folder = tmp_path_factory.mktemp('backends')
    quiet = dict(WANDB_SILENT='true', WANDB_MODE='offline', WANDB_DIR=str(folder))
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        visualizer = dict(type='SegLocalVisualizer', vis_backends=BACKENDS)
        hooks = [dict(type='mmsynth.FitLatentCodecHook', num_images=4),
                 dict(type='mmsynth.PreviewHook', interval=2, num_samples=2)]
        train(small_run.config_file, folder / 'generator', {'custom_hooks': hooks, 'visualizer': visualizer})
        pool = folder / 'pool'
        cfg = online_config(small_run, pool, folder / 'segmentor', iterations=2,
                            hooks=[hook_config(small_run, pool, num_preview=2)])
        cfg.visualizer = visualizer
        train_online(cfg)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return folder


def test_in_the_work_folder(runs: Path) -> None:
    pictures = {path.stem.rsplit('_', 1)[0]: path for path in runs.rglob('vis_data/vis_image/*.png')}
    assert pictures.keys() == PICTURES
    grid = np.asarray(Image.open(runs / 'generator' / 'previews' / 'iter_2.png'))
    assert np.array_equal(np.asarray(Image.open(pictures['preview'])), grid)
    scalars = ''.join(path.read_text() for path in runs.rglob('vis_data/*.json'))
    assert [name for name in SCALARS if f'"{name}"' not in scalars] == []


@TENSORBOARD
def test_in_tensorboard(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
    from tensorboard.backend.event_processing.event_accumulator import SCALARS as EVENTS
    found: dict[str, dict[str, list[int]]] = {'images': {}, 'scalars': {}}
    for file in runs.rglob('events.out.tfevents.*'):
        events = EventAccumulator(str(file), size_guidance={IMAGES: 0, EVENTS: 0})
        events.Reload()
        found['images'] |= {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()['images']}
        found['scalars'] |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}
    assert found['images'].keys() == PICTURES and found['images']['preview'] == [2]  # at its iteration
    assert SCALARS <= found['scalars'].keys()


@WANDB
def test_in_wandb(runs: Path) -> None:
    pictures = {path.name.split('_', 2)[0] for path in runs.rglob('media/images/*.png')}
    assert pictures == {'preview', 'online'}
    records = b''.join(path.read_bytes() for path in runs.rglob('*.wandb'))
    assert [name for name in SCALARS if name.encode() not in records] == []
