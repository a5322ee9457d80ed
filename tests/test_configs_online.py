"""The shipped configs whose segmentors get synthetic images while they train; what all have is in test_configs.py."""
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from small_run import ROOT
from test_configs import CONFIG_DIR, GENERATORS, ONLINE, lay_out, load, tile_size

from mmsynth.datasets.samplers import RatioSchedule
from mmsynth.pool import Pool
from mmsynth.registry import HOOKS
from mmsynth.synthesis.build import build_dataset, load_config

pytestmark = pytest.mark.slow


def without_synthesis(name: str) -> Config:
    """The config that an online one inherits."""
    return load('demo/segmentor_real.py' if name.startswith('demo/') else f'{name.split("_online")[0]}.py')


@pytest.mark.parametrize('name', ONLINE)
def test_online_configs_add_synthesis_and_change_nothing_else(name: str) -> None:
    """So their models, schedules, validation and real data are those that are tested above."""
    cfg, plain = load(name), without_synthesis(name)
    loader = cfg.train_dataloader
    assert loader.batch_sampler.type == 'mmsynth.RatioBatchSampler'
    assert loader.dataset.type == 'mmsynth.SyntheticAugmentDataset'
    assert loader.pop('batch_sampler') and cfg.pop('custom_hooks')
    loader.dataset = loader.dataset.dataset
    for name in ('online', 'pool'):  # what the hook is made of
        cfg.pop(name, None)
    assert cfg._cfg_dict == plain._cfg_dict


@pytest.mark.parametrize('name', ONLINE)
def test_online_configs_name_a_shipped_generator(name: str) -> None:
    cfg = load(name)
    (hook, ) = cfg.custom_hooks
    path = hook.generator.config.removeprefix('configs/').replace('projects/demo/configs/', 'demo/')
    assert path in GENERATORS and (name.startswith('demo/') or Path(name).stem.split('_online-')[-1] in path)
    generator = load(path)
    assert generator.model.label_codec.num_classes == cfg.model.decode_head.num_classes
    folder = f'work_dirs/demo/{Path(path).stem}' if path.startswith('demo/') else f'work_dirs/{Path(path).stem}'
    assert hook.generator.checkpoint == f'{folder}/iter_{generator.train_cfg.max_iters}.pth'
    assert HOOKS.build(hook).priority is not None


@pytest.mark.parametrize('name', ONLINE)
def test_online_rounds_fit_the_schedule(name: str) -> None:
    """Several rounds are generated and drawn, and the pool gets full before the end."""
    cfg = load(name)
    (hook, ) = cfg.custom_hooks
    assert hook.pool == cfg.train_dataloader.dataset.pool
    rounds = len(range(hook.begin, cfg.train_cfg.max_iters, hook.interval))
    assert rounds >= 7 and hook.num_per_round <= hook.max_samples < rounds * hook.num_per_round
    schedule = {key: value for key, value in cfg.train_dataloader.batch_sampler.items() if key != 'type'}
    assert RatioSchedule(**schedule).share(cfg.train_cfg.max_iters - 1) == Fraction(str(schedule['ratio']))


@pytest.mark.parametrize('name', [name for name in ONLINE if name.startswith('segmentation/')])
def test_online_configs_read_real_and_synthetic(name: str, tmp_path: Path) -> None:
    """The pool's labels are class indices, also where those of the real set are coded otherwise, as LoveDA's."""
    cfg = load(name)
    wrapper, num_classes = cfg.train_dataloader.dataset, cfg.model.decode_head.num_classes
    wrapper.dataset = lay_out(wrapper.dataset, tmp_path / 'data', tile_size(name))
    wrapper.pool = str(tmp_path / 'pool')
    dataset = build_dataset(wrapper)
    labels = np.random.default_rng(0).integers(0, num_classes, (64, 64), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with Pool.create(wrapper.pool, {}, dataset.metainfo['classes'], dataset.metainfo['palette']) as pool:
        pool.add('a', np.full((512, 512, 3), 90, np.uint8), labels, source_mask='', prompt='', seed=0,
                 generator=dict(type='none', config_sha256='', weights_sha256=None))
    for item, origin in ((dataset[0], 'real'), (dataset[len(dataset)], 'synthetic')):
        mask = item['data_samples'].gt_sem_seg.data
        assert item['data_samples'].origin == origin and tuple(mask.shape) == (1, *cfg.crop_size)
        assert mask.max() < num_classes
    assert set(mask.unique().tolist()) == set(range(num_classes))


def test_the_documented_lines_add_synthesis_to_a_config(tmp_path: Path) -> None:
    """The diff of docs/en/online.md, under a config of somebody's who has a hook already."""
    diff = (ROOT / 'docs' / 'en' / 'online.md').read_text().split('```diff\n')[1].split('```')[0]
    base = CONFIG_DIR / 'segmentation' / 'pspnet_r50_1xb8-40k_dubai-512x512.py'
    (tmp_path / 'my_segmentor.py').write_text(f"_base_ = '{base.as_posix()}'\ncustom_hooks = [dict(type='EMAHook')]\n")
    (tmp_path / 'mine.py').write_text(''.join(line[1:] for line in diff.splitlines(keepends=True)))
    cfg, plain = load_config(tmp_path / 'mine.py'), load_config(base)
    loader = cfg.train_dataloader
    assert loader.dataset.dataset == plain.train_dataloader.dataset and loader.dataset.pool == cfg.pool
    assert loader.sampler == plain.train_dataloader.sampler
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'mmsynth.OnlineSynthesisHook']
    assert HOOKS.build(cfg.custom_hooks[1]).pool == cfg.pool
