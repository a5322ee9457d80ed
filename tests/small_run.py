"""The smallest whole run: four labelled images, text configs, a trained generator and a trained critic.

What users write and call, at a size that takes seconds: mmengine config files with ``_base_``, the host's runner, a
data set on disk. :func:`train_small_run` is what the session fixture ``small_run`` gives to all tests; they read it and
write elsewhere.
"""
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmsynth.apis import synthesize
from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ('field', 'road', 'water')
PALETTE = ((150, 220, 90), (250, 230, 120), (50, 110, 220))
NAMES = ('a', 'b', 'c', 'd')
SIDE = 16
IGNORED = 255
ITERATIONS = 2
SAMPLING_STEPS = 3
GUIDED_STEPS = 2

RUNTIME = """
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_processor = dict(by_epoch=False)
log_level = 'WARNING'
randomness = dict(seed=0)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=10**9)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
metainfo = dict(classes=('field', 'road', 'water'), palette=[[150, 220, 90], [250, 230, 120], [50, 110, 220]])
"""

SEGMENTOR = """
_base_ = 'runtime.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, seg_pad_val=255, size=(16, 16)),
    backbone=dict(
        type='ResNetV1c', depth=18, base_channels=4, stem_channels=4, strides=(1, 1, 1, 1), norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1, concat_input=False, num_classes=3,
        norm_cfg=norm_cfg, align_corners=False, loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
real = dict(
    type='BaseSegDataset',
    data_root=folder + '/data',
    metainfo={{_base_.metainfo}},
    data_prefix=dict(img_path='images', seg_map_path='masks'),
    img_suffix='.png',
    pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True), dataset=real)
"""

GENERATOR = """
_base_ = 'runtime.py'
custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
classes = ('field', 'road', 'water')
model = dict(
    type='mmsynth.TODSynth',
    latent_codec=dict(type='mmsynth.PatchPCACodec', patch_size=4, channels=4),
    label_codec=dict(type='mmsynth.OneHotCodec', num_classes=3),
    text_encoder=dict(type='mmsynth.ClassNameEmbedding', classes=classes, embed_dims=16, pooled_dims=16),
    network=dict(
        type='mmsynth.MMDiT',
        mask_channels=3,
        trunk=dict(
            sample_size=4, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
            pos_embed_max_size=8, qk_norm='rms_norm')),
    trainable=dict(image='full', mask='full', text='full'),
    num_steps=3)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.ManifestDataset',
        data_root=folder + '/data',
        meta_file='meta.json',
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        img_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
custom_hooks = [dict(type='mmsynth.FitLatentCodecHook', num_images=8)]
synthesis = dict(
    batch_size=4,
    dataset=dict(
        type='mmsynth.ManifestDataset',
        data_root=folder + '/data',
        meta_file='meta.json',
        ann_file='synthesis.jsonl',
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]),
    guidance=dict(
        type='mmsynth.CRFM',
        steps=2,
        step_size=0.3,
        measure_after=True,
        critic=dict(
            type='mmsynth.SegmentorCritic',
            config=folder + '/critic.py',
            checkpoint=folder + '/critic/iter_2.pth')))
"""

_run_numbers = itertools.count()


@dataclass(frozen=True)
class SmallRun:
    """Where everything is.

    Attributes:
        folder: Holds ``data/``, the configs and the work folders.
        generator: The generator's checkpoint.
        critic: The critic's checkpoint.
    """

    folder: Path
    generator: Path
    critic: Path

    @property
    def data(self) -> Path:
        return self.folder / 'data'

    @property
    def config_file(self) -> Path:
        """The generator's config, with ``synthesis``."""
        return self.folder / 'generator.py'

    @property
    def critic_config_file(self) -> Path:
        return self.folder / 'critic.py'

    def config(self, **overrides: Any) -> Config:
        """The generator's config with settings replaced, dots written as ``__``."""
        return load_config(self.config_file, {key.replace('__', '.'): value for key, value in overrides.items()})

    def synthesize(self, out_dir: Path, cfg: Config | None = None, **options: Any) -> Pool:
        """Generate a pool with the trained generator."""
        return synthesize(cfg or self.config(), self.generator, out_dir, **options)


def write_small_run(folder: Path) -> Path:
    """Write data set and configs; the folder."""
    write_data(folder / 'data')
    for name, text in (('runtime.py', RUNTIME), ('critic.py', SEGMENTOR), ('generator.py', GENERATOR)):
        where = '' if name == 'runtime.py' else f'folder = {folder.as_posix()!r}\n'
        (folder / name).write_text(where + text)
    return folder


def write_data(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Labelled images whose colours follow their masks, ``meta.json``, and ``synthesis.jsonl`` with all masks."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (folder / kind).mkdir(parents=True)
    for name in names:
        mask = rng.integers(0, len(CLASSES), (SIDE // 4, SIDE // 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        image = np.clip(np.asarray(PALETTE)[mask] + rng.normal(0, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        mask[:2, :2] = IGNORED
        Image.fromarray(image).save(folder / 'images' / f'{name}.png')
        Image.fromarray(mask).save(folder / 'masks' / f'{name}.png')
    (folder / 'meta.json').write_text(json.dumps(dict(name='small', classes=CLASSES, palette=PALETTE)))
    lines = [json.dumps(dict(source=f'masks/{name}.png')) for name in names]
    (folder / 'synthesis.jsonl').write_text('\n'.join(lines) + '\n')


def train_small_run(folder: Path) -> SmallRun:
    """Write everything, then train critic and generator for two iterations each."""
    write_small_run(folder)
    for stage in ('critic', 'generator'):
        train(folder / f'{stage}.py', folder / stage)
    generator, critic = (folder / stage / f'iter_{ITERATIONS}.pth' for stage in ('generator', 'critic'))
    return SmallRun(folder, generator, critic)


def train(config: Path, work_dir: Path, overrides: Mapping[str, Any] | None = None) -> Runner:
    """Train in this process, as mmseg's tools/train.py does; the runner afterwards."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(overrides or {}))
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'small_run_{os.getpid()}_{next(_run_numbers)}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def command(*arguments: object, on_path: bool = False) -> tuple[list[str], dict[str, str]]:
    """What a subprocess is started with: Python with these arguments, offline, with few threads.

    Args:
        arguments: Of the Python interpreter.
        on_path: Let the process import mmsynth, as an installation would.
    """
    env = os.environ | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', CUDA_VISIBLE_DEVICES='')
    env.pop('PYTHONPATH', None)
    if on_path:
        env['PYTHONPATH'] = str(ROOT)
    return [sys.executable, *map(str, arguments)], env


def run(*arguments: object, cwd: Path, on_path: bool = False) -> str:
    """Run Python to its end and return what it wrote; fails with its errors."""
    line, env = command(*arguments, on_path=on_path)
    result = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f'{" ".join(line)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout + result.stderr
