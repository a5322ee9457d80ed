"""Pointing the shipped demo configs at a folder of other classes."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from small_run import CLASSES, PALETTE, ROOT

from mmsynth.models.generators import BaseGenerator
from mmsynth.registry import MODELS
from mmsynth.synthesis.build import load_config
from projects.demo.retarget import retarget

CONFIGS = sorted(path for path in (ROOT / 'projects' / 'demo' / 'configs').glob('*.py')
                 if not path.stem.startswith('worth'))


def load(path: Path) -> Config:
    cfg = load_config(path)
    retarget(cfg, '/data/other', CLASSES, PALETTE)
    return cfg


def values(node: Any, key: str) -> Iterator[Any]:
    """Every value that stands under a key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from values(item, key)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_class_count_and_name_is_the_new_one(path: Path) -> None:
    cfg = load(path)._cfg_dict.to_dict()
    assert set(values(cfg, 'num_classes')) == {3}
    assert all(tuple(names) == CLASSES for names in values(cfg, 'classes'))
    assert all([tuple(colour) for colour in info['palette']] == list(PALETTE) for info in values(cfg, 'metainfo'))
    assert 'forest' not in str(cfg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_data_folder_is_the_new_one_and_others_stay(path: Path) -> None:
    before, after = (list(values(cfg._cfg_dict.to_dict(), 'data_root')) for cfg in (load_config(path), load(path)))
    own = load_config(path).data_root
    assert len(before) == len(after) and own in before
    assert after == ['/data/other' if root == own else root for root in before]


def test_paths_below_the_data_folder_move_with_it() -> None:
    pipeline = load(ROOT / 'projects' / 'demo' / 'configs' / 'tisynth.py').synthesis.dataset.pipeline
    assert [step.folder for step in pipeline if 'folder' in step] == ['/data/other/img_dir/target']


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_model_builds_with_the_new_classes(path: Path) -> None:
    cfg = load(path)
    if 'backbone' in cfg.model:
        assert MODELS.build(cfg.model).decode_head.num_classes == 3
        return
    model = MODELS.build(cfg.model)
    assert isinstance(model, BaseGenerator) and model.num_classes == 3
    assert model.text_encoder.classes == CLASSES and model.network.mask_channels == 3 * model.label_codec.patch_size**2


def test_what_is_not_about_the_data_stays() -> None:
    before, after = (cfg._cfg_dict.to_dict() for cfg in (load_config(CONFIGS[0]), load(CONFIGS[0])))
    for key in ('train_cfg', 'optim_wrapper', 'default_hooks', 'randomness', 'custom_imports'):
        assert before[key] == after[key]


def test_a_config_without_a_data_root_is_refused() -> None:
    with pytest.raises(ValueError, match='no top-level `data_root` to replace'):
        retarget(Config(dict(model=dict(num_classes=6))), '/data', CLASSES, PALETTE)
