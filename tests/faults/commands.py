"""The commands that are broken off, as a user types them, and what an unbroken run of each leaves."""
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from forks import Ended, run, script
from safetensors import safe_open
from small_run import ROOT, RUNTIME, SmallRun, write_data
from tiny_backbone import JOINT_DIM, POOLED_DIM

from mmsynth.pool import Pool
from mmsynth.pool.manifest import TRACE_FILE
from mmsynth.pool.recovery import ORPHAN_FOLDER
from mmsynth.utils.checkpoint import read_training_state

NAMES = ('synthesize', 'filter_pool', 'encode_prompts', 'encode_latents', 'train', 'online mixing')
PER_MASK = 2
ITERATIONS, SAVED_EVERY = 6, 2

ENCODED = """
custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
classes = ('field', 'road', 'water')
prompt_encoder = dict(type='mmsynth.SD3TextEncoder', pretrained=backbone, max_sequence_length=16)
model = dict(
    type='mmsynth.TODSynth',
    network=dict(type='mmsynth.MMDiT', pretrained=backbone),
    latent_codec=dict(type='mmsynth.VAECodec', pretrained=backbone, cache_dir=cache),
    label_codec=dict(type='mmsynth.GreyLevelCodec', num_classes=3),
    text_encoder=dict(type='mmsynth.CachedTextEncoder', cache_dir=cache))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.ManifestDataset', data_root=folder + '/data', meta_file='meta.json', ann_file=ann_file,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.PackSynthInputs')]))
"""

ONLINE = """
_base_ = FOLDER + '/critic.py'
custom_imports = dict(imports=['mmsynth'], allow_failed_imports=False)
model = dict(decode_head=dict(dropout_ratio=0.0))  # mmengine's checkpoints have no random state
train_cfg = dict(max_iters=6)
default_hooks = dict(checkpoint=dict(interval=2))
train_dataloader = dict(
    batch_sampler=dict(type='mmsynth.RatioBatchSampler', ratio=0.5),
    dataset=dict(_delete_=True, type='mmsynth.SyntheticAugmentDataset', dataset=_base_.real, pool=POOL))
custom_hooks = [dict(
    type='mmsynth.OnlineSynthesisHook', pool=POOL, begin=1, interval=2, num_per_round=2, max_samples=4, num_preview=0,
    guidance=dict(type='mmsynth.CRFM', steps=1, step_size=0.3),
    generator=dict(config=FOLDER + '/generator.py', checkpoint=GENERATOR))]
"""


@dataclass(frozen=True)
class Command:
    """A command that can be called again after it was broken off.

    Attributes:
        name: Of the tool, or what it does.
        action: Calling it.
        root: The folder that it writes.
        result: What it has to leave: names with contents, paths and tensors.
        start: What has to be in ``root`` before; a folder, or None.
        scratch: For its output.
    """

    name: str
    action: Callable[[], None]
    root: Path
    result: Callable[[Path], dict[str, Any]]
    start: Path | None
    scratch: Path

    def prepare(self) -> None:
        """Make ``root`` what it was before the first call."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.start is not None:
            shutil.copytree(self.start, self.root)

    def call(self, **fault: Any) -> Ended:
        """Call it in a fork, see :class:`forks.Fork`."""
        return run(self.action, self.root, self.scratch, **fault)


def files(root: Path) -> dict[str, Any]:
    """All files of a pool or a cache with what they hold.

    Left out are locks, and ``.orphans/``: there a pool keeps, for its owner to delete, images that a killed writer had
    not finished. ``traces.jsonl`` is compared by what it says, as a killed writer may have left a line twice; so are
    safetensors files, whose writer puts the two entries of the header in any order.
    """
    return {str(path.relative_to(root)):
            _header_and_tensors(path) if path.suffix == '.safetensors' else path.read_bytes()
            for path in sorted(root.rglob('*'))
            if path.is_file() and ORPHAN_FOLDER not in path.parts and not path.name.endswith(('.lock', TRACE_FILE))}


def _header_and_tensors(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return file.metadata(), {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def pool_files(root: Path) -> dict[str, Any]:
    """:func:`files` of a pool, and the traces of its samples."""
    pool = Pool.open(root)
    return files(root) | {f'trace of {record.id}': pool.load_trace(record) for record in pool.records}


def weights(work_dir: Path) -> dict[str, Any]:
    """Weights and optimizer's state of the last checkpoint; it stands beside those of an unbroken run, with dates."""
    last = Path((work_dir / 'last_checkpoint').read_text())
    state = read_training_state(last)
    tensors = {f'{part}.{name}': value for part in ('state_dict', 'optimizer') for name, value in _tensors(state[part])}
    names = {path.name: None for path in work_dir.iterdir() if path.is_file() and path.suffix != '.py'}
    return tensors | names | dict(last=last.name, iteration=state['meta']['iter'])


def training(root: Path) -> dict[str, Any]:
    return weights(root / 'work')


def online(root: Path) -> dict[str, Any]:
    return weights(root / 'work') | pool_files(root / 'pool')


def _tensors(node: Any, name: str = '') -> list[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        return [(name, node)]
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    return [found for key, value in items for found in _tensors(value, f'{name}.{key}')]


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of what differs between two results; an empty text if they are the same to the last bit."""
    def is_same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return ', '.join(sorted(name for name in one.keys() | other.keys()
                            if name not in one or name not in other or not is_same(one[name], other[name])))


def synthesize_command(small: SmallRun, folder: Path, *options: object) -> Command:
    root = folder / 'pool'
    return Command('synthesize', script(
        ROOT / 'tools' / 'synthesize.py', small.config_file, small.generator, '--out-dir', root, '--num-per-mask',
        PER_MASK, '--batch-size', 3, '--device', 'cpu', *options), root, pool_files, None, folder / 'scratch')


def filter_command(small: SmallRun, folder: Path, generated: Path, losses: Path) -> Command:
    """Its samples are stored three at a time, which a pool of this size would be at once."""
    root, config = folder / 'filtered', folder / 'filter.py'
    critic = dict(type='mmsynth.SegmentorCritic', config=str(small.critic_config_file), checkpoint=str(small.critic))
    settings = dict(type='mmsynth.ClassLossFilter', segmentor=critic, class_losses=str(losses), margin=1.0, mode='soft')
    config.write_text(f'_base_ = {str(small.config_file)!r}\nsynthesis = dict(filter={settings!r})\n')
    call = script(ROOT / 'tools' / 'filter_pool.py', root, config, '--batch-size', 2, '--device', 'cpu')

    def action() -> None:
        import_module('mmsynth.apis.filter_pool')  # of which `mmsynth.apis` has a function by the same name
        sys.modules['mmsynth.apis.filter_pool'].CHUNK = 3
        call()

    return Command('filter_pool', action, root, pool_files, generated, folder / 'scratch')


def encode_command(kind: str, backbone: Path, folder: Path) -> Command:
    """``kind`` is 'prompts' or 'latents'."""
    root, config = folder / kind, folder / f'{kind}.py'
    if not (folder / 'data').exists():
        write_data(folder / 'data')
        lines = [dict(source=f'masks/{name}.png', target=f'images/{name}.png', prompt=f'{name} ' * (number + 1))
                 for number, name in enumerate('abcd')]
        (folder / 'data' / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    names = dict(folder=str(folder), backbone=str(backbone), cache=str(root), ann_file='train.jsonl',
                 JOINT=JOINT_DIM, POOLED=POOLED_DIM)
    config.write_text('\n'.join(f'{key} = {value!r}' for key, value in names.items()) + RUNTIME + ENCODED)
    return Command(f'encode_{kind}', script(
        ROOT / 'tools' / f'encode_{kind}.py', config, '--batch-size', 3, '--device', 'cpu'), root, files, None,
        folder / 'scratch')


def train_command(small: SmallRun, folder: Path) -> Command:
    """mmseg's tools/train.py with the tiny generator's config."""
    root = folder / 'training'
    return Command('train', script(
        ROOT / 'tools' / 'train.py', small.config_file, '--work-dir', root / 'work', '--resume', '--cfg-options',
        f'train_cfg.max_iters={ITERATIONS}', f'default_hooks.checkpoint.interval={SAVED_EVERY}',
        'model.prompt_dropout=0.3'), root, training, None, folder / 'scratch')


def online_command(small: SmallRun, folder: Path, *options: object) -> Command:
    """mmseg's tools/train.py with a segmentor's config that has OnlineSynthesisHook."""
    root, config = folder / 'online', folder / 'online.py'
    names = dict(FOLDER=str(small.folder), POOL=str(root / 'pool'), GENERATOR=str(small.generator))
    text = ONLINE
    for name, value in names.items():
        text = text.replace(f'{name} + \'', f'\'{value}').replace(name, repr(value))
    config.write_text(text)
    return Command('online mixing', script(ROOT / 'tools' / 'train.py', config, '--work-dir', root / 'work',
                                           '--resume', *options), root, online, None, folder / 'scratch')
