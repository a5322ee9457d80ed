"""Every shipped config: it loads, its names resolve, its model builds, and it reads data laid out as it says."""
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import Registry
from mmengine.registry import root as root_registries
from mmseg.models import BaseSegmentor
from PIL import Image
from small_run import ROOT

from mmsynth.models.generators import BaseGenerator, TISynth, TODSynth
from mmsynth.registry import DATASETS, MODELS, STRATEGIES
from mmsynth.sampling import SAMPLERS
from mmsynth.synthesis.build import build_dataset, load_config
from projects.demo.landcover import CLASSES as LANDCOVER

pytestmark = pytest.mark.slow

CONFIG_DIR = ROOT / 'configs'
CONFIGS = {path.relative_to(CONFIG_DIR).as_posix(): path for path in sorted(CONFIG_DIR.rglob('*.py'))
           if '_base_' not in path.parts}
CONFIGS |= {f'demo/{path.name}': path for path in sorted((ROOT / 'projects' / 'demo' / 'configs').glob('*.py'))
            if not path.stem.startswith('worth')}  # those name others, and train nothing
GENERATORS = [name for name in CONFIGS if Path(name).stem.startswith(('tisynth', 'todsynth'))]
SEGMENTORS = [name for name in CONFIGS if name not in GENERATORS]
ONLINE = [name for name in SEGMENTORS if '_online' in name]
TODSYNTH = [name for name in CONFIGS if name.startswith('todsynth/')]
TISYNTH = [name for name in CONFIGS if name.startswith('tisynth/')]
REGISTRIES = [value for value in vars(root_registries).values() if isinstance(value, Registry)]
STABLE_DIFFUSION_3, STABLE_DIFFUSION_1 = 'stabilityai/', 'stable-diffusion-v1-5/'


def load(name: str) -> Config:
    return load_config(CONFIGS[name])


def walk(node: Any) -> Iterator[ConfigDict]:
    """Every dict of a config."""
    if isinstance(node, dict):
        yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from walk(item)


def resolves(name: str) -> bool:
    """Whether some registry, seen from the default scope, knows the name."""
    for registry in REGISTRIES:
        with registry.switch_scope_and_registry(None) as scoped:
            if scoped.get(name) is not None:
                return True
    return False


@pytest.fixture
def backbones(tiny_sd3: Path, tiny_sd15: Path) -> dict[str, Path]:
    """Tiny folders by the start of the hub id that they stand for."""
    return {STABLE_DIFFUSION_3: tiny_sd3, STABLE_DIFFUSION_1: tiny_sd15}


def replace_backbone(node: Any, backbones: Mapping[str, Path]) -> None:
    """Put a tiny folder in the place of every Stable Diffusion that would be downloaded."""
    for part in walk(node):
        for key, value in part.items():
            for start, folder in backbones.items():
                if isinstance(value, str) and value.startswith(start):
                    part[key] = str(folder)


def data_sets(cfg: Config) -> Iterator[ConfigDict]:
    """The config's own data sets, without what wraps them."""
    for part in walk(cfg._cfg_dict):
        if 'type' in part and 'pipeline' in part and 'data_root' in part:
            yield part


def class_names(dataset: Mapping) -> tuple[str, ...]:
    """The names that a data set will have; those of the demo stand in the meta.json that it draws."""
    if 'metainfo' in dataset:
        return tuple(dataset['metainfo']['classes'])
    declared = DATASETS.get(dataset['type']) or mmseg_class(dataset['type'])
    return tuple(declared.METAINFO.get('classes') or LANDCOVER)


def mmseg_class(name: str) -> type:
    with ROOT_DATASETS.switch_scope_and_registry('mmseg') as registry:
        return registry.get(name)


def trains_in_bfloat16(cfg: Config) -> bool:
    """By the host's autocast, or by that of DeepSpeed."""
    autocast = cfg.get('strategy', {}).get('config', {}).get('torch_autocast', dict(enabled=False))
    own = cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.dtype == 'bfloat16'
    return own or autocast['enabled'] and autocast['dtype'] == 'bfloat16'


def test_there_are_configs_of_every_kind() -> None:
    assert {'demo/todsynth.py', 'demo/tisynth.py', 'demo/critic.py', 'demo/judge.py', 'demo/segmentor_real.py',
            'demo/segmentor_mixed.py', 'demo/segmentor_online.py'} <= CONFIGS.keys()
    sets = ('loveda', 'fusu', 'dubai')
    assert {f'segmentation/{model}_1xb8-40k_{data}-512x512.py' for data in sets
            for model in ('pspnet_r50', 'deeplabv3plus_r50', 'segformer_b2')} <= CONFIGS.keys()
    assert {f'segmentation/deeplabv3plus_r50_1xb8-40k_{data}-512x512_online-{kind}.py' for data in sets
            for kind in ('todsynth', 'tisynth')} == {name for name in ONLINE if name.startswith('segmentation/')}
    assert {f'todsynth/todsynth_sd35m_4xb1-amp-40k_{data}-512x512.py' for data in sets} <= set(TODSYNTH)
    assert {f'tisynth/tisynth_sd15_1xb2-100k_{data}-512x512.py'
            for data in ('gid', 'fusu', 'loveda-rural2urban', 'dubai')} == set(TISYNTH)


@pytest.mark.parametrize('name', sorted({*TODSYNTH, *TISYNTH, *SEGMENTORS} - {*ONLINE}))
def test_names_say_what_the_configs_hold(name: str) -> None:
    """GPUs x batch, automatic mixed precision, iterations, and the size of the crops."""
    if name.startswith('demo/'):
        return
    cfg, said = load(name), re.search(r'_[0-9]+xb(\d+)-(amp-)?(\d+)k_.*-(\d+)x(\d+)\.py', name).groups()
    crop = [part.crop_size for part in walk(cfg.train_dataloader._cfg_dict if hasattr(
        cfg.train_dataloader, '_cfg_dict') else cfg.train_dataloader) if 'crop_size' in part]
    assert (int(said[0]), int(said[2]) * 1000) == (cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters)
    assert (said[1] is not None) == trains_in_bfloat16(cfg)
    assert all(tuple(size) == (int(said[3]), int(said[4])) for size in crop)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_registered_name_resolves(name: str) -> None:
    cfg = load(name)
    assert cfg.default_scope == 'mmseg' and 'mmsynth' in cfg.custom_imports.imports
    names = {part[key] for part in walk(cfg._cfg_dict) for key in ('type', 'ema_type') if key in part} - set(SAMPLERS)
    assert len(names) > 10
    assert [unknown for unknown in sorted(names) if not resolves(unknown)] == []


@pytest.mark.parametrize('name', ['EncoderDecodr', 'mmsynth.TODSynt', 'mmseg.LoadSegMap', 'nowhere.TODSynth'])
def test_a_wrong_name_does_not_resolve(name: str) -> None:
    load(GENERATORS[0])
    assert not resolves(name)


@pytest.mark.parametrize('name', CONFIGS)
def test_class_counts_agree_with_the_data(name: str) -> None:
    cfg = load(name)
    names = {class_names(dataset) for dataset in data_sets(cfg)}
    assert len(names) == 1, 'its data sets have different classes'
    (classes, ) = names
    counts = {part['num_classes'] for part in walk(cfg._cfg_dict) if 'num_classes' in part}
    assert counts == {len(classes)}
    for part in walk(cfg._cfg_dict):  # what is told the names must be told the data set's
        if 'classes' in part:
            assert tuple(part['classes']) == classes


@pytest.mark.parametrize('name', [name for name in SEGMENTORS if name not in ONLINE])
def test_segmentors_build(name: str) -> None:
    cfg = load(name)
    model = MODELS.build(cfg.model)
    assert isinstance(model, BaseSegmentor) and model.out_channels == cfg.model.decode_head.num_classes
    assert {'val_dataloader', 'val_evaluator', 'val_cfg'} <= cfg.keys()


@pytest.mark.parametrize('name', GENERATORS)
def test_generators_build(name: str, backbones: dict[str, Path]) -> None:
    cfg = load(name)
    replace_backbone(cfg._cfg_dict, backbones)
    model = MODELS.build(cfg.model)
    assert isinstance(model, BaseGenerator)
    trained = model.trainable_names()
    assert trained and not [parameter for parameter in trained if parameter.startswith('latent_codec.')]


@pytest.mark.parametrize('name', TODSYNTH)
def test_todsynth_configs_are_the_released_recipe(name: str, backbones: dict[str, Path]) -> None:
    cfg = load(name)
    assert cfg.model.type == 'mmsynth.TODSynth' and cfg.model.num_steps == 23
    assert trains_in_bfloat16(cfg)
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2)
    assert cfg.optim_wrapper.optimizer.to_dict() == optimizer
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    assert accumulated * cfg.train_dataloader.batch_size == 2 and cfg.train_cfg.max_iters == 20000 * accumulated
    assert (cfg.optim_wrapper.get('clip_grad') or dict(max_norm=cfg.strategy.gradient_clipping))['max_norm'] == 1
    pretrained = {part['pretrained'] for part in walk(cfg._cfg_dict) if 'pretrained' in part}
    assert pretrained == {'stabilityai/stable-diffusion-3.5-medium'}, 'codec, network and text encoder of one backbone'
    replace_backbone(cfg._cfg_dict, backbones)
    model = MODELS.build(cfg.model)
    assert isinstance(model, TODSynth) and model.network.gradient_checkpointing
    frozen = [parameter for parameter in model.network.branch_parameters('text') if f'network.{parameter}' in
              model.trainable_names()]
    assert frozen == []
    encoder = MODELS.build(cfg.prompt_encoder)
    embeds = encoder.encode(['a satellite image of road'])
    assert embeds.prompt_embeds.shape[-1] == model.network.trunk.config.joint_attention_dim
    assert embeds.pooled_prompt_embeds.shape[-1] == model.network.trunk.config.pooled_projection_dim


@pytest.mark.parametrize('name', [name for name in TODSYNTH if '-zero' in name or '-fsdp' in name])
def test_strategies_take_their_options(name: str) -> None:
    cfg = load(name)
    declared = inspect.signature(STRATEGIES.get(cfg.strategy.type).__init__).parameters
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy.keys() - {'type'} <= declared.keys()
    if cfg.strategy.type == 'DeepSpeedStrategy':
        assert f'-zero{cfg.strategy.zero_optimization.stage}_' in name
        assert cfg.optim_wrapper.keys() == {'type', 'optimizer'}, 'its wrapper takes no other option'
        assert cfg.strategy.zero_optimization.keys() <= {'stage', 'overlap_comm', 'contiguous_gradients'}


@pytest.mark.parametrize('name', TISYNTH)
def test_tisynth_configs_are_the_released_recipe(name: str, backbones: dict[str, Path]) -> None:
    cfg = load(name)
    assert (cfg.model.type, cfg.model.num_steps, cfg.model.guidance_scale) == ('mmsynth.TISynth', 50, 9.0)
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ('AdamW', 1e-5)
    assert cfg.train_dataloader.batch_size == 2 and tuple(cfg.crop_size) == (512, 512)
    assert dict(type='RandomFlip', prob=0.5) in [part.to_dict() for part in cfg.train_dataloader.dataset.pipeline]
    pretrained = {part['pretrained'] for part in walk(cfg._cfg_dict) if 'pretrained' in part}
    assert pretrained == {'stable-diffusion-v1-5/stable-diffusion-v1-5'}
    replace_backbone(cfg._cfg_dict, backbones)
    model = MODELS.build(cfg.model)
    assert isinstance(model, TISynth) and model.network.gradient_checkpointing
    assert type(model.sampler).__name__ == 'DDIMScheduler' and model.sampler.config.steps_offset == 1
    frozen = {f'network.{parameter}' for parameter in model.network.branch_parameters('unet')}
    assert frozen and not frozen & set(model.trainable_names())
    embeds = MODELS.build(cfg.prompt_encoder).encode(['a satellite image of road'])
    assert embeds.prompt_embeds.shape[1:] == (77, model.network.cross_attention_dim)


@pytest.mark.parametrize('name', TODSYNTH)
def test_the_critic_is_a_shipped_config_of_the_same_classes(name: str) -> None:
    cfg = load(name)
    critic = cfg.synthesis.guidance.critic
    path = (ROOT / critic.config).relative_to(CONFIG_DIR).as_posix()
    assert path in SEGMENTORS
    segmentor = load(path)
    assert segmentor.model.decode_head.num_classes == cfg.model.label_codec.num_classes
    assert critic.checkpoint == f'work_dirs/{Path(path).stem}/iter_{segmentor.train_cfg.max_iters}.pth'


@pytest.mark.parametrize('name', GENERATORS)
def test_schedules_end_where_the_training_ends(name: str) -> None:
    cfg = load(name)
    end = cfg.train_cfg.max_iters
    rates = cfg.get('param_scheduler', ())  # none: a constant rate
    last = max((part.get('end', part.get('total_steps', 0)) for part in rates), default=end)
    assert last == end and cfg.train_cfg.val_interval > end
    assert end % cfg.default_hooks.checkpoint.interval == 0


# ---- data as the configs of the real data sets lay it out


def tile_size(name: str) -> tuple[int, int]:
    """Not that of the crop, but for FUSU and GID, which come in tiles of 512 pixels."""
    return (512, 512) if 'fusu' in name or 'gid' in name else (600, 700)


def write_tile(root: Path, image: str, mask: str, size: tuple[int, int], num_classes: int) -> None:
    """An image, and a mask with any class but the first (0 is no data in LoveDA)."""
    rng = np.random.default_rng(0)
    for path in (image, mask):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / image)
    labels = rng.integers(1, num_classes, (8, 8), dtype=np.uint8).repeat(100, 0).repeat(100, 1)
    Image.fromarray(labels[:size[0], :size[1]]).save(root / mask)


def lay_out(dataset: ConfigDict, root: Path, size: tuple[int, int]) -> ConfigDict:
    """Write what the data set reads, and point it there."""
    folders, num_classes = dataset.get('data_prefix'), len(class_names(dataset))
    if folders:
        write_tile(root, f'{folders.img_path}/a.png', f'{folders.seg_map_path}/a.png', size, num_classes)
    else:
        write_tile(root, 'images/a.png', 'masks/a.png', size, num_classes)
        line = dict(source='masks/a.png', target='images/a.png', ref_image='references/r.png')
        (root / dataset.ann_file).write_text(json.dumps(line))
    (root / 'references').mkdir()  # unlabelled, and of another size
    Image.fromarray(np.full((520, 700, 3), 90, np.uint8)).save(root / 'references' / 'r.png')
    for transform in dataset.pipeline:
        if 'folder' in transform:
            transform.folder = str(root / 'references')
    dataset.data_root = str(root)
    return dataset


@pytest.mark.parametrize('part', ['train_dataloader', 'synthesis'])
@pytest.mark.parametrize('name', [*TODSYNTH, *TISYNTH])
def test_backbone_configs_read_their_data(name: str, part: str, tmp_path: Path) -> None:
    cfg = load(name)
    classes = class_names(cfg[part].dataset)
    item = build_dataset(lay_out(cfg[part].dataset, tmp_path, tile_size(name)))[0]
    mask = item['data_samples'].gt_sem_seg.data
    assert tuple(mask.shape) == (1, *cfg.crop_size) and mask.max() < len(classes)
    if part == 'train_dataloader':
        assert tuple(item['inputs'].shape) == (3, *cfg.crop_size)
    if name in TISYNTH:
        assert tuple(item['data_samples'].reference.data.shape) == (3, *cfg.crop_size)
    listed = item['data_samples'].prompt.removeprefix('a satellite image of ').split(', ')
    assert {classes[value] for value in mask.unique()} <= set(listed) <= set(classes)


@pytest.mark.parametrize('part', ['train_dataloader', 'val_dataloader'])
@pytest.mark.parametrize('name', [name for name in SEGMENTORS if name.startswith('segmentation/') and
                                  name not in ONLINE])
def test_segmentation_configs_read_their_data(name: str, part: str, tmp_path: Path) -> None:
    cfg = load(name)
    item = build_dataset(lay_out(cfg[part].dataset, tmp_path, tile_size(name)))[0]
    mask = item['data_samples'].gt_sem_seg.data
    size = cfg.crop_size if part == 'train_dataloader' else tile_size(name)
    assert tuple(item['inputs'].shape) == (3, *size) and tuple(mask.shape) == (1, *size)
    assert mask.max() < cfg.model.decode_head.num_classes
