"""The whole loop on a small set: train segmentor and generator, synthesize with and without CRFM, train segmentors.

What is compared: segmentors trained for equally many iterations on real images only, on real and plain synthetic
images, and on real and CRFM synthetic images, evaluated on held-out real images; and how well a judge, a segmentor of
another architecture that never guides, reads the masks back from the synthetic images. The segmentor of the real images
is the critic that guides. A generator that takes references transfers: the labelled images show one domain, the
references and the held-out images another.
"""
import copy
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from mmsynth.apis.synthesize import synthesize
from mmsynth.evaluation import mask_consistency
from mmsynth.guidance import SegmentorCritic
from mmsynth.models.networks import CONTROLS
from mmsynth.pool import Pool
from mmsynth.synthesis.build import load_config
from mmsynth.utils.files import FolderLock
from projects.demo.colours import ReferenceSwap, reference_swap
from projects.demo.plan import CODECS, GENERATORS, ONLINE, ONLINE_ROUNDS, PRESETS, REAL, Row, make_plan
from projects.demo.prepare import split_folder, write_landcover
from projects.demo.result import SeedResult
from projects.demo.retarget import retarget
from projects.demo.stages import Done, Stages, train

RESULT_FILE = 'result.json'
_OTHER_TRAINING = 1000  # between the seeds of a row's trainings
_SHORTEST_SCHEDULE = 30  # iterations; a one-cycle schedule needs a few for each of its phases


class Demo:
    """One demo: its data, configs and stages. Every stage's config is written to ``OUT/configs`` and runs alone there.

    Args:
        config_dir: The folder ``projects/demo/configs``.
        out_dir: Where everything goes.
        data: A folder with images/, masks/ and meta.json; None draws the embedded land-cover set.
        preset: One of :data:`~projects.demo.plan.PRESETS`.
        generator: One of :data:`~projects.demo.plan.GENERATORS`.
        val_pattern: Which images of ``data`` are for validation, see :func:`~projects.demo.prepare.split_folder`.
        control: How masks steer TODSynth, one of its network's :data:`~mmsynth.models.networks.CONTROLS`; 'triple' if
            None.
        codec: What makes latents of images, one of :data:`~projects.demo.plan.CODECS`.
        trainings: How often every row's segmentor is trained, each time with another seed of its weights and batches; a
            row's mIoU is their mean.

    Raises:
        ValueError: For an unknown preset, generator, control or codec, a control for another generator, or
            ``trainings`` below 1.
    """

    def __init__(self,
                 config_dir: Path,
                 out_dir: Path,
                 *,
                 data: Path | None = None,
                 preset: str = 'standard',
                 generator: str = 'todsynth',
                 control: str | None = None,
                 codec: str = 'pca',
                 trainings: int = 1,
                 val_pattern: str | None = None) -> None:
        _check_choices(preset, generator, control, codec)
        if trainings < 1:
            raise ValueError(f'`trainings` must be at least 1, got {trainings}.')
        self.config_dir = config_dir
        self.out_dir = out_dir
        self.preset = PRESETS[preset]
        self.generator = generator
        self.control = (control or next(iter(CONTROLS))) if generator == 'todsynth' else None
        self.codec = codec
        self.trainings = trainings
        self.data_root = out_dir / 'data'
        if data is None:
            count = self.preset.num_images
            write_landcover(self.data_root, **({} if count is None else dict(
                num_labelled=count, num_val=count, num_judge=count, num_target=count, num_synthesis=count)))
        else:
            split_folder(data, self.data_root, val_pattern=val_pattern)
        self.plan = make_plan(generator, self.data_root)
        self.meta = json.loads((self.data_root / 'meta.json').read_text())
        self.settings = json.loads(json.dumps(dict(
            preset=asdict(self.preset), generator=generator, control=self.control, codec=codec,
            trainings=trainings, rows=list(self.plan.titles), configs=self._config_digests(),
            data=self.meta['settings'])))

    def _config_digests(self) -> dict[str, str]:
        """Config file → sha256 of what it says with its bases: a result of other configs is no result of these."""
        files = (self.generator_file, 'judge.py', 'segmentor_real.py', 'segmentor_mixed.py', 'segmentor_online.py')
        return {file: sha256(json.dumps(load_config(self.config_dir / file).to_dict()).encode()).hexdigest()
                for file in files}

    def run(self, seed: int, stages: Stages) -> SeedResult:
        """Run every stage with one seed, unless it was run to its end before; an unfinished run is replaced.

        Several processes may run different seeds in one folder. The results do not depend on the number of workers.

        Raises:
            RuntimeError: If another process runs this seed there.
        """
        path = self._folder(seed, RESULT_FILE)
        result = SeedResult.read(path, self.settings)
        if result is not None:
            print_log(f'seed {seed} was run before: {path}', logger='current')
            return result
        with FolderLock(self.out_dir, file=f'.seed_{seed}.lock'):
            shutil.rmtree(path.parent, ignore_errors=True)
            result = self._run_stages(seed, stages)
            result.write(path, self.settings)
        return result

    def _run_stages(self, seed: int, stages: Stages) -> SeedResult:
        result = SeedResult(seed)
        done = stages.run(self._trainings(  # in each group the longest first
            seed, generator=self._generator_config(seed), judge=self._judge_config(seed),
            **self._row_configs(self.plan.real_rows, seed)))
        result.reference_miou = dict(
            critic=done[f'train {self.plan.critic}'].miou, judge=done['train judge'].miou)
        generator = find_latest_checkpoint(self._folder(seed, 'generator'))
        result.pools = {name: self._folder(seed, f'pool_{name}') for name in self.plan.rows}
        online = {_stage(ONLINE, number): self._online_config(generator, seed, number)
                  for number in range(self.trainings)}
        done |= stages.run(self._trainings(seed, **online) | self._syntheses(generator, result))
        result.consistency = {name: done[f'synthesize {name}'].readings for name in result.pools}
        result.swap = self._compare_references(result)
        done |= stages.run(self._trainings(
            seed, **self._row_configs([name for name, row in self.plan.rows.items() if row.mixed], seed)))
        result.miou = {row: mean(done[f'train {_stage(row, number)}'].miou for number in range(self.trainings))
                       for row in self.plan.titles}
        result.seconds = {stage: found.seconds for stage, found in done.items()}
        return result

    def _judge_config(self, seed: int) -> Config:
        """The judge knows more images than the critic, and all domains."""
        cfg = self._config('judge.py', seed)
        _set_iterations(cfg, self.preset.judge_iters)
        dataset = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='ConcatDataset', datasets=[_with_part(dataset, part) for part in self.plan.judge_parts])
        self._validate_as_planned(cfg)
        return cfg

    def _segmentor_config(self, name: str, seed: int, training: int) -> Config:
        cfg = self._config(name, seed + _OTHER_TRAINING * training)
        _set_iterations(cfg, self.preset.segmentor_iters)
        if self.preset.segmentor_lr is not None:
            cfg.optim_wrapper.optimizer.lr = self.preset.segmentor_lr
            for scheduler in cfg.param_scheduler:
                scheduler.eta_max = self.preset.segmentor_lr
        self._validate_as_planned(cfg)
        return cfg

    def _row_configs(self, rows: Iterable[str], seed: int) -> dict[str, Config]:
        return {_stage(row, number): self._row_config(row, seed, number)
                for row in rows for number in range(self.trainings)}

    def _row_config(self, row: str, seed: int, training: int = 0) -> Config:
        name = 'segmentor_real.py' if row in self.plan.real_rows else 'segmentor_mixed.py'
        cfg = self._segmentor_config(name, seed, training)
        if row in self.plan.real_rows:
            if row != REAL:
                self._recolor(cfg.train_dataloader.dataset)
            return cfg
        real, synthetic = cfg.train_dataloader.dataset.datasets
        self._recolor(real.dataset)
        synthetic.dataset.data_root = str(self._folder(seed, f'pool_{row}'))
        num_real = len(list((self.data_root / 'img_dir' / 'train').glob('*.png')))
        num_synthetic = len(Pool.open(synthetic.dataset.data_root))
        real.times = max(1, round(num_synthetic / num_real))  # half and half, as far as whole repeats go
        synthetic.times = max(1, round(num_real / num_synthetic))
        return cfg

    def _online_config(self, generator: str, seed: int, training: int = 0) -> Config:
        """As many images as the pools have, in equal rounds, guided by the same critic."""
        cfg = self._segmentor_config('segmentor_online.py', seed, training)
        hook = next(hook for hook in cfg.custom_hooks if hook.type == 'mmsynth.OnlineSynthesisHook')
        hook.begin, hook.interval = 0, max(1, cfg.train_cfg.max_iters // ONLINE_ROUNDS)
        num_masks = len((self.data_root / 'synthesis.jsonl').read_text().splitlines()[:self.preset.limit])
        num_images = num_masks * self.plan.rows['crfm'].num_per_mask
        hook.num_per_round = max(1, num_images // ONLINE_ROUNDS)
        hook.max_samples = max(hook.max_samples, num_images)
        dataset = cfg.train_dataloader.dataset
        dataset.synthetic_pipeline = copy.deepcopy(dataset.dataset.pipeline)  # they have the target's look already
        self._recolor(dataset.dataset)
        hook.critic = self._critic(seed)
        hook.generator = dict(config=str(self._folder(seed, 'configs') / 'generator.py'), checkpoint=generator)
        hook.pool = dataset.pool = str(self._folder(seed, _stage('pool_online', training)))
        hook.seed = seed + _OTHER_TRAINING * training
        return cfg

    def _recolor(self, dataset: ConfigDict) -> None:
        """Real images take the target's colours, where there is a target: what costs nothing comes first."""
        if self.plan.transfers:
            dataset.pipeline.insert(
                -1, dict(type='mmsynth.ColorTransfer', folder=str(self.data_root / 'img_dir' / 'target')))

    def _validate_as_planned(self, cfg: Config) -> None:
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset = _with_part(loader.dataset, self.plan.validated)

    @property
    def generator_file(self) -> str:
        """The generator's config under ``projects/demo/configs``."""
        return f'{self.generator}{self.preset.suffix}.py'

    def _generator_config(self, seed: int) -> Config:
        cfg = self._config(self.generator_file, seed)
        if self.control is not None:
            cfg.model.network.control = self.control
        self._set_codec(cfg)
        _set_references(cfg, self._references(self.plan.rows['plain']))
        _set_iterations(cfg, self.preset.generator_iters)
        cfg.synthesis.guidance.critic = self._critic(seed)
        return cfg

    def _critic(self, seed: int) -> dict[str, str]:
        name = self.plan.critic
        iterations = self._row_config(name, seed).train_cfg.max_iters
        return dict(type='mmsynth.SegmentorCritic', config=str(self._folder(seed, 'configs') / f'{name}.py'),
                    checkpoint=str(self._folder(seed, name) / f'iter_{iterations}.pth'))

    def _set_codec(self, cfg: Config) -> None:
        plan = CODECS[self.codec]
        if plan is None:
            return
        cfg.model.latent_codec = dict(plan.codec)
        if self.preset.generator_iters is not None:
            cfg.model.latent_codec.iterations = self.preset.generator_iters
        for hook in cfg.custom_hooks:
            if hook['type'] == 'mmsynth.FitLatentCodecHook':
                hook['num_images'] = plan.num_images

    def _references(self, row: Row) -> Path | None:
        return None if row.references is None else self.data_root / 'img_dir' / row.references

    def _syntheses(self, checkpoint: Path, result: SeedResult) -> dict[str, Callable[[], Done]]:
        """What synthesizes and reads the pool of every row that has one, the longest first."""
        config = self._folder(result.seed, 'configs') / 'generator.py'
        readers = {reader: self._reader_files(reader, result.seed) for reader in ('judge', 'critic')}
        return {
            f'synthesize {name}': partial(_synthesize, config, self._references(row), checkpoint, result.pools[name],
                                          readers, guidance=row.guidance, num_per_mask=row.num_per_mask,
                                          limit=self.preset.limit, seed=result.seed)
            for name, row in sorted(self.plan.rows.items(), key=_quick)}

    def _compare_references(self, result: SeedResult) -> ReferenceSwap | None:
        if not self.plan.transfers:
            return None
        return reference_swap(Pool.open(result.pools['source']), Pool.open(result.pools['plain']))

    def reader(self, name: str, seed: int) -> SegmentorCritic:
        """The trained 'critic' or 'judge' of a seed, to read images with."""
        return SegmentorCritic(*self._reader_files(name, seed))

    def _reader_files(self, name: str, seed: int) -> tuple[str, str]:
        stage = self.plan.critic if name == 'critic' else name
        return str(self._folder(seed, 'configs') / f'{stage}.py'), find_latest_checkpoint(self._folder(seed, stage))

    def _trainings(self, seed: int, **configs: Config) -> dict[str, Callable[[], Done]]:
        """What trains each config; they are written where a user can run them again."""
        trainings = {}
        for stage, cfg in configs.items():
            cfg.work_dir = str(self._folder(seed, stage))
            cfg.experiment_name = f'{stage}_{seed}_{time.time_ns()}'
            path = self._folder(seed, 'configs') / f'{stage}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            cfg.dump(path)
            print_log(f'[{stage}] training; config {path}', logger='current')
            trainings[f'train {stage}'] = partial(train, path)
        return trainings

    def _config(self, name: str, seed: int) -> Config:
        cfg = load_config(self.config_dir / name)
        retarget(cfg, self.data_root, self.meta['classes'], self.meta['palette'])
        cfg.randomness = dict(seed=cfg.randomness.seed + seed)
        cfg.log_level = 'WARNING'
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if 'ProgressBar' not in hook.type]
        cfg.custom_hooks.append(dict(type='mmsynth.ProgressBarHook', title=Path(name).stem))
        return cfg

    def _folder(self, seed: int, name: str) -> Path:
        return self.out_dir / f'seed_{seed}' / name


def _stage(row: str, training: int) -> str:
    """The stage, and its folder, of a row's training, counted from 0."""
    return row if training == 0 else f'{row}_{training + 1}'


def _check_choices(preset: str, generator: str, control: str | None, codec: str) -> None:
    for name, value, known in (('preset', preset, PRESETS), ('generator', generator, GENERATORS),
                               ('control', control, (None, *CONTROLS)), ('codec', codec, CODECS)):
        if value not in known:
            raise ValueError(f'`{name}` must be one of {", ".join(filter(None, known))}, got {value!r}.')
    if control is not None and generator != 'todsynth':
        raise ValueError(f'`control` chooses among the networks of todsynth, got {control!r} for {generator}; leave it '
                         'out.')


def _quick(row: tuple[str, Row]) -> tuple[bool, int]:
    """Sorts the pools that take longest first: with few processes all are then ready earlier."""
    return row[1].guidance == 'none', -row[1].num_per_mask


def _synthesize(config: Path, references: Path | None, checkpoint: Path, out_dir: Path,
                readers: Mapping[str, tuple[str, str]], **options: Any) -> Done:
    """Synthesize a pool with references from a folder, and let segmentors read it."""
    start = time.perf_counter()
    cfg = load_config(config)
    _set_references(cfg, references)
    pool = synthesize(cfg, checkpoint, out_dir, **options)
    readings = {name: mask_consistency(pool, SegmentorCritic(*files)) for name, files in readers.items()}
    return Done(time.perf_counter() - start, readings=readings)


def _set_references(cfg: Config, folder: Path | None) -> None:
    """Name the folder whose images a generator takes its looks from, in training and in synthesis."""
    for transform in (*cfg.train_dataloader.dataset.pipeline, *cfg.synthesis.dataset.pipeline):
        if transform.type in ('mmsynth.ColorTransfer', 'mmsynth.PickReference'):
            transform.folder = str(folder)


def _with_part(dataset: ConfigDict, part: str) -> ConfigDict:
    """The same data set on another part of the data."""
    dataset = copy.deepcopy(dataset)
    dataset.data_prefix = dict(img_path=f'img_dir/{part}', seg_map_path=f'ann_dir/{part}')
    return dataset


def _set_iterations(cfg: Config, iterations: int | None) -> None:
    if iterations is None:
        return
    cfg.train_cfg.max_iters = iterations
    cfg.train_cfg.val_interval = iterations
    for scheduler in cfg.get('param_scheduler', ()):
        scheduler.total_steps = max(iterations, _SHORTEST_SCHEDULE)
    cfg.default_hooks.checkpoint.interval = iterations
    for hook in cfg.get('custom_hooks', []):
        if 'interval' in hook:
            hook.interval = iterations
