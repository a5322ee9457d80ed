"""One case of a study: the data of a seed and a share of labels, its networks, pools and rows.

Every stage leaves a file when it is through, and is not run again; generator, critic and pools serve all rows::

    OUT/share_1/seed_0/
      data/  configs/  critic/  generator/  pool_NAME/
      rows/SEGMENTOR/ROW/{val,test}.npy    counts (I, 2, K) of :mod:`worth_study.statistics`
"""
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.evaluation import IoUMetric
from PIL import Image
from torch import nn

from mmsynth.apis.filter_pool import filter_pool
from mmsynth.apis.fit_class_loss import fit_class_loss
from mmsynth.apis.synthesize import synthesize
from mmsynth.filtering import ClassLossFilter
from mmsynth.guidance import SegmentorCritic
from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config
from mmsynth.utils.files import atomic_write
from mmsynth.utils.labels import IGNORE_INDEX, read_label
from projects.demo.retarget import retarget
from worth_study.data import write_case
from worth_study.plan import PoolPlan, RowPlan, Study
from worth_study.statistics import Counts


def case_folder(out_dir: Path, share: float, seed: int) -> Path:
    """Where a case lies below the study's folder."""
    return out_dir / f'share_{share:g}' / f'seed_{seed}'


def counts_file(out_dir: Path, share: float, seed: int, segmentor: str, row: str, part: str) -> Path:
    """Where the counts of a row lie."""
    return case_folder(out_dir, share, seed) / 'rows' / segmentor / row / f'{part}.npy'


class Case:
    """The stages of a seed and a share; each is run when first asked for.

    Args:
        study: What is compared.
        data_dir: Folder of labelled images.
        out_dir: The study's folder.
        places: See :func:`worth_study.data.split_places`.
        share: Share of the training images that are labelled.
        seed: Of the case: the places, the labelled images, all trainings and noise.
    """

    def __init__(self, study: Study, data_dir: Path, out_dir: Path, *, places: str, share: float, seed: int) -> None:
        self.study, self.out_dir, self.share, self.seed = study, out_dir, share, seed
        self.root = case_folder(out_dir, share, seed)
        self.data = self.root / 'data'
        self.meta = write_case(data_dir, self.data, places=places, share=share, seed=seed, downscale=study.downscale,
                               tile_size=study.tile_size, piece_size=study.piece_size, num_masks=study.num_masks)

    def run(self) -> None:
        """Run all rows of all segmentors."""
        for segmentor in self.study.segmentors:
            for name, row in self.study.rows.items():
                self.row(segmentor, name, row)

    def row(self, segmentor: str, name: str, row: RowPlan) -> None:
        """Train a segmentor on a row and count its hits on the parts 'val' and 'test'."""
        files = {part: counts_file(self.out_dir, self.share, self.seed, segmentor, name, part)
                 for part in ('val', 'test')}
        if all(file.is_file() for file in files.values()):
            return
        cfg = self._config(self.study.segmentors[segmentor])
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline[-1:-1] = row.transforms
        if row.pool is not None:
            pool = str(self.pool(row.pool, self.study.pools[row.pool]))
            cfg.train_dataloader.batch_sampler = dict(type='mmsynth.RatioBatchSampler', ratio=row.ratio)
            cfg.train_dataloader.dataset = dict(type='mmsynth.SyntheticAugmentDataset', dataset=dataset, pool=pool)
        iterations = self.study.segmentor_iters or cfg.train_cfg.max_iters
        model = self._train(cfg, f'rows/{segmentor}/{name}', round(row.iterations * iterations))
        for part, file in files.items():
            counts = count_images(model, self.data, part, len(self.meta['classes']))
            with open(file.with_suffix('.tmp'), 'wb') as stream:
                np.save(stream, counts)
            file.with_suffix('.tmp').replace(file)

    def pool(self, name: str, plan: PoolPlan) -> Path:
        """Generate a pool, filter it if it is to be; its folder."""
        folder, done = self.root / f'pool_{name}', self.root / f'pool_{name}.done'
        if done.is_file():
            return folder
        checkpoint = self.checkpoint('generator', self.study.generator, self.study.generator_iters)
        cfg = load_config(self.root / 'configs' / 'generator.py')
        critic = None
        if plan.guidance is not None or plan.filter is not None:
            weights = self.checkpoint('critic', self.study.critic, self.study.segmentor_iters)
            critic = dict(type='mmsynth.SegmentorCritic', config=str(self.root / 'configs' / 'critic.py'),
                          checkpoint=str(weights))
        cfg.synthesis.guidance = None if plan.guidance is None else dict(plan.guidance, critic=critic)
        cfg.synthesis.num_per_mask = plan.num_per_mask
        synthesize(cfg, checkpoint, folder, seed=self.seed)
        if plan.filter is not None:
            losses = self.root / 'class_losses.json'
            if not losses.is_file():
                fit_class_loss(critic['config'], critic['checkpoint']).write(losses)
            filter_pool(folder, ClassLossFilter(critic, str(losses), **plan.filter), overwrite=True)
        atomic_write(done, b'')
        return folder

    def checkpoint(self, stage: str, config: str, iterations: int | None) -> Path:
        """Train the generator or the critic; its last weights."""
        if not self._is_done(stage):
            cfg = self._config(config)
            self._train(cfg, stage, iterations or cfg.train_cfg.max_iters)
        return Path(find_latest_checkpoint(self.root / stage))

    def _is_done(self, stage: str) -> bool:
        return (self.root / stage / 'done').is_file()

    def _config(self, path: str) -> Config:
        cfg = load_config(path)
        retarget(cfg, self.data, self.meta['classes'], self.meta['palette'])
        cfg.randomness = dict(seed=self.seed)
        cfg.log_level = 'WARNING'
        return cfg

    def _train(self, cfg: Config, stage: str, iterations: int) -> nn.Module:
        """Train from the start, without validation on the way; the model."""
        shutil.rmtree(self.root / stage, ignore_errors=True)
        cfg.work_dir, cfg.experiment_name = str(self.root / stage), f'{self.root}/{stage}'.replace('/', '_')
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations + 1)
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
            cfg.pop(key, None)
        for scheduler in cfg.param_scheduler:
            scheduler.total_steps = max(iterations, 30)  # OneCycleLR needs a few for each of its phases
        cfg.default_hooks.checkpoint.interval = iterations
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', ())
                            if not str(hook.type).endswith(('ProgressBarHook', 'PreviewHook'))]
        path = self.root / 'configs' / f'{stage.replace("/", "_")}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(path)
        runner = Runner.from_cfg(Config.fromfile(path))
        runner.train()
        atomic_write(self.root / stage / 'done', b'')
        return runner.model


@torch.no_grad()
def count_images(model: nn.Module, data: Path, part: str, num_classes: int) -> Counts:
    """Count intersection and union (I, 2, K) of a segmentor's predictions in the images of a part."""
    critic, found = SegmentorCritic(segmentor=model.eval()), []
    for path in sorted((data / 'img_dir' / part).glob('*.png')):
        with Image.open(path) as file:
            image = torch.from_numpy(np.array(file.convert('RGB'))).permute(2, 0, 1)[None].float() / 255
        label = torch.from_numpy(read_label(str(data / 'ann_dir' / part / path.name)).astype(np.int64))
        predicted = critic.predict_logits(image).argmax(1)[0]
        areas: Any = IoUMetric.intersect_and_union(predicted, label, num_classes, IGNORE_INDEX)
        found.append(np.stack([areas[0].numpy(), areas[1].numpy()]).astype(np.int64))
    return np.stack(found)


def load_pool(out_dir: Path, share: float, seed: int, name: str) -> Pool:
    """Open a pool of a case for the report's pictures."""
    return Pool.open(case_folder(out_dir, share, seed) / f'pool_{name}')
