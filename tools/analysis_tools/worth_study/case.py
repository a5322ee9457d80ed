"""One case of a study: the data of a seed and a share of labels, its networks, pools and rows.

Each is a stage: a folder, and beside it ``STAGE.done`` when it is through, with the seconds it took and a hash of all
that decides on it. A stage that is done is not run again, and is refused if its settings have changed since::

    OUT/share_1/seed_0/
      data/  configs/                       see :mod:`worth_study.data`; the configs as they were run
      generators/NAME/  critics/NAME/       critics/NAME_without_PLACE/ of cross-fitted ones
      latent_critics/GENERATOR_CRITIC/      distilled
      pools/NAME/  pseudo_labels/SEGMENTOR_ROW/
      rows/SEGMENTOR/ROW/{val,test}.npy     counts (I, 2, K) of :mod:`worth_study.statistics`
      rows/SEGMENTOR/ROW/training_N/        the second training of the same and those after it
      judges/NAME/  readings/JUDGE/POOL/    what a judge finds in a pool: evaluation.json
"""
import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.utils import mkdir_or_exist

from mmsynth.apis.evaluate_pool import RealImages, evaluate_pool, write_evaluation
from mmsynth.apis.filter_pool import filter_pool
from mmsynth.apis.fit_class_loss import fit_class_loss
from mmsynth.apis.synthesize import synthesize
from mmsynth.engine.train_latent_critic import train_latent_critic
from mmsynth.filtering import ClassLossFilter
from mmsynth.guidance import SegmentorCritic
from mmsynth.guidance.critic_weights import critic_checkpoints, critic_hashes
from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config
from mmsynth.utils.files import atomic_write
from mmsynth.utils.hashes import config_hash, file_hash
from projects.demo.retarget import retarget
from worth_study.data import write_case
from worth_study.folders import case_folder, row_counts, training_stages
from worth_study.plan import REDUCIBLE, CriticPlan, PoolPlan, RowPlan, Study
from worth_study.statistics import best_row
from worth_study.training import count_images, prepare, pseudo_label, scale_learning_rate, train, weight_pixels


class Case:
    """The stages of a seed and a share; each is run when first asked for.

    Args:
        study: What is compared.
        data_dir: Folder of labelled images.
        out_dir: The study's folder.
        places: See :func:`worth_study.data.split_places`.
        share: Share of the training images that are labelled.
        seed: Of the case: the places, the labelled images, all trainings and noise.

    Raises:
        ValueError: If the case was begun with other settings.
    """

    def __init__(self, study: Study, data_dir: Path, out_dir: Path, *, places: str, share: float, seed: int) -> None:
        self.study, self.out_dir, self.share, self.seed = study, out_dir, share, seed
        self.root = case_folder(out_dir, share, seed)
        self.data = self.root / 'data'
        self.meta = write_case(data_dir, self.data, places=places, share=share, seed=seed, downscale=study.downscale,
                               tile_size=study.tile_size, piece_size=study.piece_size, num_masks=study.num_masks)
        self._failed: set[str] = set()  # stages, in this run

    def run(self) -> list[str]:
        """Run all rows of all segmentors, then let the judges read; what failed, each with its error."""
        failed = []
        rows, pools = self.study.rows_and_pools(bool(self.meta['parts']['unlabelled']))
        for run, names, others in ((self.row, self.study.segmentors, rows), (self.reading, self.study.judges, pools)):
            for name, other in product(names, others):
                try:
                    run(name, other)
                except Exception as error:  # of one row; others may do without what failed
                    traceback.print_exc()
                    failed.append(f'{name}, {other}: {type(error).__name__}: {error}')
        return failed

    # ------------------------------------------------------------------------------------------------------------ rows
    def row(self, segmentor: str, name: str) -> None:
        """Train a segmentor on a row, as often as the study says."""
        for number, stage in enumerate(training_stages(name, self.study.trainings)):
            self._row(segmentor, name, f'rows/{segmentor}/{stage}', self.seed + 10_000 * number)

    def _row(self, segmentor: str, name: str, stage: str, seed: int) -> None:
        """Train a segmentor on a row and count its hits on the parts 'val' and 'test'."""
        row, cfg, inputs = self.study.rows[name], self._config(self.study.segmentors[segmentor]), []
        cfg.randomness = dict(seed=seed)
        loader, pool = cfg.train_dataloader, None
        loader.dataset.pipeline[-1:-1] = list(row.transforms)
        if row.pool is not None and self.study.pools[row.pool].is_weighted:
            weight_pixels(cfg)
        if row.online is not None:
            pool = self.root / stage / 'pool'
            cfg.custom_hooks = [*cfg.get('custom_hooks', ()), self._online_hook(row, pool, inputs)]
        elif row.pool is not None:
            pool = self.pool(row.pool)
        elif row.self_training:
            pool = self.pseudo_labels(segmentor, name, row)
        iterations = round(row.iterations * (self.study.segmentor_iters or cfg.train_cfg.max_iters))
        if pool is not None:
            loader.batch_sampler = dict(type='mmsynth.RatioBatchSampler', ratio=row.ratio)
            if row.mixed < 1:
                loader.batch_sampler.stop = round(row.mixed * iterations)
            loader.dataset = dict(type='mmsynth.SyntheticAugmentDataset', dataset=loader.dataset, pool=str(pool))
            inputs += [] if row.online is not None else [pool / 'manifest.jsonl']
        prepare(cfg, self.root / stage, iterations)
        scale_learning_rate(cfg, row.learning_rate)

        def make() -> None:
            model = train(self._dump(cfg, stage))
            for part in ('val', 'test'):
                np.save(self.root / stage / f'{part}.npy',
                        count_images(model, self.data, part, len(self.meta['classes'])))
            if not row.is_real:  # self-training asks for those
                for weights in (self.root / stage).glob('*.pth'):
                    weights.unlink()

        self._stage(stage, cfg.to_dict(), inputs, make)

    def pseudo_labels(self, segmentor: str, name: str, row: RowPlan) -> Path:
        """Label the unlabelled images by the best segmentor of real images only; a pool's folder."""
        for real in self.study.baseline:
            self.row(segmentor, real)
        best = best_row({real: [row_counts(self.root, segmentor, real, 'val', self.study.trainings)]
                         for real in self.study.baseline})
        weights = _weights(self.root / 'rows' / segmentor / best)
        stage = f'pseudo_labels/{segmentor}_{name}'

        def make() -> None:
            shutil.rmtree(self.root / stage, ignore_errors=True)  # what a killed run left
            model = SegmentorCritic(str(self._config_file(f'rows/{segmentor}/{best}')), str(weights)).segmentor
            pseudo_label(model, self.data / 'img_dir' / 'unlabelled', self.root / stage, self.meta, row.confidence)

        return self._stage(stage, dict(confidence=row.confidence), [weights], make)

    def _online_hook(self, row: RowPlan, pool: Path, inputs: list[Path]) -> dict[str, Any]:
        """The hook that generates what the row's pool describes while it trains; adds the files that decide."""
        plan, options = self.study.pools[row.pool], dict(row.online)
        cfg, checkpoint = self._synthesis(plan)
        if options.get('critic') in self.study.critics:
            options['critic'] = self.critic(options['critic'])
            inputs += _checkpoints(options['critic'])
        filtering = None if plan.filter is None else dict(plan.filter)
        if filtering is not None and 'segmentor' in filtering:
            filtering |= self._filter_parts(plan)
            inputs += _checkpoints(filtering['segmentor'])
        inputs.append(checkpoint)
        return dict(type='mmsynth.OnlineSynthesisHook', pool=str(pool), seed=self.seed, guidance=self._guidance(plan),
                    filter=filtering, generator=dict(config=cfg.to_dict(), checkpoint=str(checkpoint)), **options)

    def reading(self, judge: str, pool: str) -> Path:
        """Let a judge read a pool and compare it with the labelled images; the folder of the evaluation."""
        cfg, images, stage = self._config(self.study.judges[judge]), self.pool(pool), f'readings/{judge}/{pool}'
        cfg.randomness = dict(seed=1000 + self.seed)  # no twin of a critic
        dataset = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
            dict(dataset, data_prefix=dict(img_path=f'img_dir/{part}', seg_map_path=f'ann_dir/{part}'))
            for part in ('train', 'val', 'test')])
        weights = self._network(cfg, f'judges/{judge}', 2 * (self.study.segmentor_iters or cfg.train_cfg.max_iters))
        real = self._config_file(f'generators/{self.study.pools[pool].generator}')

        def make() -> None:
            evaluation = evaluate_pool(images, self._config_file(f'judges/{judge}'), weights, real=RealImages(real))
            mkdir_or_exist(self.root / stage)
            write_evaluation(evaluation, self.root / stage / 'evaluation.json')

        return self._stage(stage, {}, [images / 'manifest.jsonl', weights], make)

    # ----------------------------------------------------------------------------------------------------------- pools
    def pool(self, name: str) -> Path:
        """Generate a pool, or take the images of one that differs in the filter alone, and filter it; its folder."""
        plan, stage = self.study.pools[name], f'pools/{name}'
        folder, same = self.root / stage, self.study.unfiltered(name)
        settings, inputs = dict(filter=plan.filter), []
        if same is not None:
            images = self.pool(same)
            inputs.append(images / 'manifest.jsonl')
        else:
            cfg, checkpoint = self._synthesis(plan)
            critics = {}
            if plan.guidance is not None:
                crossed = self.study.is_cross_fitted(plan.critic)
                critics = {place: self.critic(plan.critic, place) for place in
                           (self.meta['places'] if crossed else [None])}
                if plan.latent_critic:
                    critics = {None: self.latent_critic(plan.generator, plan.critic)}
            settings |= dict(guidance=plan.guidance, num_per_mask=plan.num_per_mask, cfg=cfg.to_dict(), critics=critics)
            inputs += [checkpoint, *(file for critic in critics.values() for file in _checkpoints(critic))]
        parts = None if plan.filter is None else self._filter_parts(plan)
        inputs += [] if parts is None else _checkpoints(parts['segmentor'])

        def make() -> None:
            if same is not None:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(images, folder)
            else:
                self._synthesize(cfg, checkpoint, plan, critics, folder)
            if parts is not None:
                filter_pool(folder, ClassLossFilter(**dict(plan.filter) | parts), overwrite=True)

        return self._stage(stage, settings, inputs, make)

    def _synthesize(self, cfg: Config, checkpoint: Path, plan: PoolPlan, critics: Mapping[str | None, dict[str, Any]],
                    folder: Path) -> None:
        """Generate a pool's images; with a critic per place each place's by its own, put together afterwards."""
        if None in critics or not critics:
            cfg.synthesis.guidance = dict(self._guidance(plan), critic=critics[None]) if critics else None
            synthesize(cfg, checkpoint, folder, seed=self.seed)
            return
        parts = []
        for place, critic in critics.items():
            own, _ = self._synthesis(plan, place)
            own.synthesis.guidance = dict(self._guidance(plan), critic=critic)
            parts.append(synthesize(own, checkpoint, folder.with_name(f'{folder.name}_parts') / place, seed=self.seed))
        settings = parts[0].settings | dict(masks_sha256=None, guidance=dict(
            settings=dict(plan.guidance), critic_weights_sha256=[critic_hashes(critic) for critic in critics.values()]))
        with Pool.create(folder, settings, parts[0].classes, parts[0].palette) as pool:
            for part in parts:
                for record in part.records:
                    if not pool.has(record.id):
                        guidance = record.guidance and record.guidance | dict(trace=part.load_trace(record))
                        pool.add(record.id, part.load_image(record), part.load_mask(record),
                                 source_mask=record.source_mask, prompt=record.prompt, seed=record.seed,
                                 generator=record.generator, reference=record.reference, guidance=guidance,
                                 mask_origin=record.mask_origin)
        shutil.rmtree(folder.with_name(f'{folder.name}_parts'))

    def _synthesis(self, plan: PoolPlan, place: str | None = None) -> tuple[Config, Path]:
        """The config of a pool's synthesis, without guidance, for all masks or those of a place; and the weights."""
        checkpoint, generator = self.generator(plan.generator), self.study.generators[plan.generator]
        cfg = self._config(generator.config, generator.overrides)
        for name, value in plan.sampling.items():
            cfg.model[name] = value
        tiles = cfg.synthesis.dataset.to_dict()
        if place is not None:
            tiles['ann_file'] = f'places/{place}/synthesis.jsonl'
        cfg.synthesis.dataset = self._masks(plan.masks, tiles)
        cfg.synthesis.num_per_mask, cfg.synthesis.guidance = plan.num_per_mask, None
        return cfg, checkpoint

    def _masks(self, source: Mapping[str, Any] | None, tiles: Mapping[str, Any]) -> Mapping[str, Any]:
        """A data set of masks: the case's tiles inside of the mask sources that a pool asks for."""
        if source is None:
            return tiles
        source = dict(source, dataset=self._masks(source.get('dataset'), tiles))
        if source.get('critic') in self.study.critics:
            source['critic'] = self.critic(source['critic'])
        return source

    def _guidance(self, plan: PoolPlan) -> dict[str, Any] | None:
        """The config of a pool's guidance, without its critic."""
        if not plan.asks_class_losses:
            return None if plan.guidance is None else dict(plan.guidance)
        losses = self._class_losses(plan.critic)
        return dict(plan.guidance, objective={key: losses if value == 'critic' else value
                                              for key, value in plan.guidance['objective'].items()})

    def _filter_parts(self, plan: PoolPlan) -> dict[str, Any]:
        """The segmentor and the class losses of a pool's filter."""
        name = plan.filter.get('segmentor', plan.critic)
        return dict(segmentor=self.critic(name), class_losses=self._class_losses(name))

    def _class_losses(self, name: str) -> str:
        """Measure what a critic loses on each class of the labelled images; the file."""
        critic, losses = self.critic(name), self.root / 'critics' / name / 'class_losses.json'
        if not losses.is_file():
            fit_class_loss(self._config(self.study.critics[name].config), critic['checkpoint']).write(losses)
        return str(losses)

    # -------------------------------------------------------------------------------------------------------- networks
    def generator(self, name: str) -> Path:
        """Train a generator; its weights."""
        plan = self.study.generators[name]
        cfg = self._config(plan.config, plan.overrides)
        if plan.unlabelled:
            loader = cfg.train_dataloader
            loader.sampler = dict(type='mmsynth.PartlyLabelledSampler', share=plan.unlabelled)
            loader.dataset = dict(type='mmsynth.PartlyLabelledDataset', dataset=loader.dataset,
                                  unlabelled=dict(data_root=str(self.data / 'img_dir' / 'unlabelled')))
        return self._network(cfg, f'generators/{name}', self.study.generator_iters)

    def critic(self, name: str, without: str | None = None) -> dict[str, Any]:
        """Train a critic, of one made of several all; its config. What is cross-fitted is trained ``without`` a place.

        Raises:
            ValueError: If there is no other labelled place.
        """
        plan = self.study.critics[name]
        if plan.critics:
            members = [self.critic(member, without) for member in plan.critics]
            parts = dict(teacher=members[0], learner=members[1]) if plan.type == REDUCIBLE else dict(critics=members)
            critic = dict(type=plan.type, **parts)
        else:
            critic = self._segmentor(name, plan, without)
        return critic if plan.looks == 1 else dict(type='mmsynth.AugmentedCritic', looks=plan.looks, critic=critic)

    def latent_critic(self, generator: str, name: str) -> dict[str, Any]:
        """Distil a critic into one that reads the latents of a generator; its config."""
        weights, critic, stage = self.generator(generator), self.critic(name), f'latent_critics/{generator}_{name}'
        file = self.root / stage / 'critic.safetensors'

        def make() -> None:
            shutil.rmtree(self.root / stage, ignore_errors=True)
            cfg = self._config(self.study.generators[generator].config, self.study.generators[generator].overrides)
            cfg.synthesis.guidance = dict(type='mmsynth.CRFM', critic=critic)
            train_latent_critic(cfg, weights, file, seed=self.seed,
                                **{} if self.study.generator_iters is None else dict(iters=self.study.generator_iters))

        self._stage(stage, {}, [weights, *_checkpoints(critic)], make)
        return dict(type='mmsynth.LatentCritic', checkpoint=str(file))

    def _segmentor(self, name: str, plan: CriticPlan, without: str | None) -> dict[str, Any]:
        cfg, stage = self._config(plan.config), f'critics/{name}'
        scale_learning_rate(cfg, plan.learning_rate)
        if plan.cross_fitted:
            if len(self.meta['places']) < 2:
                raise ValueError(f'`critics.{name}.cross_fitted` needs two labelled places to train on, of share '
                                 f'{self.share:g} there is {", ".join(self.meta["places"])}.')
            cfg.train_dataloader.dataset.ann_file = f'places/{without}/others.txt'
            stage += f'_without_{without}'
        checkpoint = self._network(cfg, stage, self.study.segmentor_iters)
        return dict(type='mmsynth.SegmentorCritic', config=str(self._config_file(stage)), checkpoint=str(checkpoint))

    def _network(self, cfg: Config, stage: str, iterations: int | None) -> Path:
        prepare(cfg, self.root / stage, iterations or cfg.train_cfg.max_iters)
        return _weights(self._stage(stage, cfg.to_dict(), [], lambda: train(self._dump(cfg, stage))))

    def _config(self, path: str, overrides: Mapping[str, Any] | None = None) -> Config:
        """A config file of the study, for the case's data and seed."""
        cfg = load_config(path, overrides)
        retarget(cfg, self.data, self.meta['classes'], self.meta['palette'])
        cfg.randomness = dict(seed=self.seed)
        cfg.log_level = 'WARNING'
        return cfg

    def _config_file(self, stage: str) -> Path:
        return self.root / 'configs' / f'{stage.replace("/", "_")}.py'

    def _dump(self, cfg: Config, stage: str) -> Config:
        """Write a config where it is looked for, and make room for what it trains."""
        shutil.rmtree(self.root / stage, ignore_errors=True)
        mkdir_or_exist(self.root / 'configs')
        cfg.dump(self._config_file(stage))
        return Config.fromfile(self._config_file(stage))

    # ---------------------------------------------------------------------------------------------------------- stages
    def _stage(self, stage: str, settings: Mapping[str, Any], inputs: Sequence[Path],
               make: Callable[[], object]) -> Path:
        """Make a stage unless it is there; its folder. What failed once is not tried again in this run.

        Args:
            stage: Its name, the folder below the case's.
            settings: All that decides what comes out, beside the content of
            inputs: files.
            make: Makes it.

        Raises:
            ValueError: If it was made with other settings or inputs.
        """
        folder, done = self.root / stage, self.root / f'{stage}.done'
        text = json.dumps(settings, default=str, sort_keys=True).replace(str(self.root), '')  # the study may be moved
        identity = config_hash(dict(settings=text, inputs=[file_hash(file) for file in inputs]))
        if done.is_file():
            if json.loads(done.read_text())['identity'] != identity:
                raise ValueError(f'`{stage.replace("/", ".")}` was made with other settings, or of other networks or '
                                 f'images, than now. Give it another name, or remove {done}.')
            return folder
        if stage in self._failed:
            raise RuntimeError(f'{stage} has failed already')
        start = time.perf_counter()
        try:
            make()
        except Exception:
            self._failed.add(stage)
            raise
        seconds = round(time.perf_counter() - start, 1)
        atomic_write(done, json.dumps(dict(identity=identity, seconds=seconds)).encode())
        print(f'{time.strftime("%H:%M:%S")} {stage}: {seconds} s', flush=True)
        return folder


def _weights(folder: Path) -> Path:
    return next(folder.glob('iter_*.pth'))


def _checkpoints(critic: Mapping[str, Any]) -> list[Path]:
    return [Path(file) for file in critic_checkpoints(critic) if file is not None]
