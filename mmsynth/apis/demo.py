"""The whole loop on a small set: train critic and generator, synthesize with and without CRFM, train segmentors.

What is compared: segmentors trained for equally many iterations on real images only, on real and plain synthetic
images, and on real and CRFM synthetic images, evaluated on held-out real images; and how well a judge, a segmentor of
another architecture that never guides, reads the masks back from the synthetic images.
"""
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsynth.apis.config import load_config
from mmsynth.apis.retarget import retarget
from mmsynth.apis.synthesize import synthesize
from mmsynth.datasets.prepare import split_folder, write_landcover
from mmsynth.evaluation import Consistency, mask_consistency
from mmsynth.guidance import SegmentorCritic
from mmsynth.models.networks import CONTROLS
from mmsynth.pool import Pool
from mmsynth.utils.files import atomic_write

RESULT_FILE = 'result.json'
_SHORTEST_SCHEDULE = 30  # iterations; a one-cycle schedule needs a few for each of its phases
SYNTHETIC_ROWS = ('plain', 'crfm')
ROW_TITLES = dict(real='real only', plain='real + plain synthetic', crfm='real + CRFM synthetic')


@dataclass(frozen=True)
class Preset:
    """How much work a demo does.

    Attributes:
        generator: File name of the generator's config under ``configs/demo``.
        generator_iters: Training iterations of the generator; None for the config's own.
        segmentor_iters: Training iterations of the critic and every row's segmentor; None for the configs' own.
        judge_iters: Training iterations of the judge; None for its config's own.
        limit: Masks synthesized for; None for all.
        num_images: Images drawn for each part of the embedded set; None for the set's own numbers.
    """

    generator: str
    generator_iters: int | None = None
    segmentor_iters: int | None = None
    judge_iters: int | None = None
    limit: int | None = None
    num_images: int | None = None


PRESETS = dict(
    standard=Preset('todsynth.py', segmentor_iters=300, judge_iters=600),
    long=Preset('todsynth_long.py'),
    smoke=Preset('todsynth.py', generator_iters=3, segmentor_iters=3, judge_iters=3, limit=4, num_images=4))


@dataclass
class SeedResult:
    """What one seed's run measured.

    Attributes:
        seed: The seed.
        miou: Row → mIoU on held-out real images, in percent.
        reference_miou: 'critic' and 'judge' → their mIoU on held-out real images, in percent.
        consistency: 'plain' and 'crfm' → reader ('judge', 'critic') → how it reads the synthetic images.
        pools: 'plain' and 'crfm' → the pool's folder.
        seconds: Stage → duration.
    """

    seed: int
    miou: dict[str, float] = field(default_factory=dict)
    reference_miou: dict[str, float] = field(default_factory=dict)
    consistency: dict[str, dict[str, Consistency]] = field(default_factory=dict)
    pools: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        """Store the result with the settings that it was measured under."""
        values = asdict(self) | dict(pools={row: str(folder) for row, folder in self.pools.items()})
        atomic_write(path, json.dumps(dict(settings=settings, result=values), indent=1).encode())

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> 'SeedResult | None':
        """A stored result; None if there is none, or it was measured under other settings."""
        if not path.is_file():
            return None
        stored = json.loads(path.read_text())
        if stored['settings'] != settings:
            return None
        result = cls(**stored['result'])
        result.pools = {row: Path(folder) for row, folder in result.pools.items()}
        result.consistency = {row: {reader: Consistency(**reading) for reader, reading in readings.items()}
                              for row, readings in result.consistency.items()}
        return result


class Demo:
    """One demo: its data, configs and stages. Every stage's config is written to ``OUT/configs`` and runs alone there.

    Args:
        config_dir: The folder ``configs/demo``.
        out_dir: Where everything goes.
        data: A folder with images/, masks/ and meta.json; None draws the embedded land-cover set.
        preset: One of :data:`PRESETS`.
        control: How masks steer the generator, one of the network's :data:`~mmsynth.models.networks.CONTROLS`.

    Raises:
        ValueError: For an unknown preset or control.
    """

    def __init__(self,
                 config_dir: Path,
                 out_dir: Path,
                 *,
                 data: Path | None = None,
                 preset: str = 'standard',
                 control: str = 'triple') -> None:
        for name, value, known in (('preset', preset, PRESETS), ('control', control, CONTROLS)):
            if value not in known:
                raise ValueError(f'`{name}` must be one of {", ".join(known)}, got {value!r}.')
        self.config_dir = config_dir
        self.out_dir = out_dir
        self.preset = PRESETS[preset]
        self.control = control
        self.data_root = out_dir / 'data'
        if data is None:
            count = self.preset.num_images
            write_landcover(self.data_root, **({} if count is None else dict(
                num_labelled=count, num_val=count, num_judge=count, num_synthesis=count)))
        else:
            split_folder(data, self.data_root)
        self.meta = json.loads((self.data_root / 'meta.json').read_text())
        self.settings = json.loads(
            json.dumps(dict(preset=asdict(self.preset), control=control, data=self.meta['settings'])))

    def run(self, seed: int) -> SeedResult:
        """Run every stage with one seed, unless it was run to its end before; an unfinished run is replaced.

        Several processes may run different seeds in one folder.
        """
        path = self._folder(seed, RESULT_FILE)
        result = SeedResult.read(path, self.settings)
        if result is not None:
            print_log(f'seed {seed} was run before: {path}', logger='current')
            return result
        shutil.rmtree(path.parent, ignore_errors=True)
        result = self._run_stages(seed)
        result.write(path, self.settings)
        return result

    def _run_stages(self, seed: int) -> SeedResult:
        result = SeedResult(seed)
        for stage in ('critic', 'judge'):
            result.reference_miou[stage] = self._train_segmentor(stage, self._segmentor_config(stage, seed), result)
        generator = self._train_generator(seed, result)
        for row in SYNTHETIC_ROWS:
            pool = self._synthesize(row, generator, seed, result)
            result.pools[row] = pool.root
            result.consistency[row] = {reader: mask_consistency(pool, self.reader(reader, seed))
                                       for reader in ('judge', 'critic')}
        for row in ROW_TITLES:
            result.miou[row] = self._train_segmentor(row, self._row_config(row, seed), result)
        return result

    def _segmentor_config(self, name: str, seed: int) -> Config:
        cfg = self._config(f'{name}.py', seed)
        _set_iterations(cfg, self.preset.judge_iters if name == 'judge' else self.preset.segmentor_iters)
        return cfg

    def _row_config(self, row: str, seed: int) -> Config:
        if row == 'real':
            return self._segmentor_config('segmentor_real', seed)
        cfg = self._segmentor_config('segmentor_mixed', seed)
        real, synthetic = cfg.train_dataloader.dataset.datasets
        synthetic.dataset.data_root = str(self._folder(seed, f'pool_{row}'))
        num_real = len(list((self.data_root / 'img_dir' / 'train').glob('*.png')))
        num_synthetic = len(Pool.open(synthetic.dataset.data_root))
        real.times = max(1, round(num_synthetic / num_real))  # half and half, as far as whole repeats go
        synthetic.times = max(1, round(num_real / num_synthetic))
        return cfg

    def _train_segmentor(self, stage: str, cfg: Config, result: SeedResult) -> float:
        hub = self._train(stage, cfg, result).message_hub
        return float(hub.get_scalar('val/mIoU').current())

    def _generator_config(self, seed: int) -> Config:
        cfg = self._config(self.preset.generator, seed)
        cfg.model.network.control = self.control
        _set_iterations(cfg, self.preset.generator_iters)
        return cfg

    def _train_generator(self, seed: int, result: SeedResult) -> Path:
        cfg = self._generator_config(seed)
        critic = cfg.synthesis.guidance.critic
        critic.config = str(self._folder(seed, 'configs') / 'critic.py')
        critic.checkpoint = str(_last_checkpoint(self._folder(seed, 'critic')))
        self._train('generator', cfg, result)
        return _last_checkpoint(self._folder(seed, 'generator'))

    def _synthesize(self, row: str, checkpoint: Path, seed: int, result: SeedResult) -> Pool:
        start = time.perf_counter()
        cfg = load_config(self._folder(seed, 'configs') / 'generator.py')
        pool = synthesize(
            cfg,
            checkpoint,
            self._folder(seed, f'pool_{row}'),
            guidance='none' if row == 'plain' else 'crfm',
            limit=self.preset.limit,
            seed=seed)
        result.seconds[f'synthesize {row}'] = time.perf_counter() - start
        return pool

    def reader(self, stage: str, seed: int) -> SegmentorCritic:
        """The trained 'critic' or 'judge' of a seed, to read images with."""
        return SegmentorCritic(
            str(self._folder(seed, 'configs') / f'{stage}.py'), str(_last_checkpoint(self._folder(seed, stage))))

    def _train(self, stage: str, cfg: Config, result: SeedResult) -> Runner:
        """What mmseg's tools/train.py does, with the stage's config written where a user can run it again."""
        start = time.perf_counter()
        cfg.work_dir = str(self._folder(result.seed, stage))
        cfg.experiment_name = f'{stage}_{result.seed}_{time.time_ns()}'
        path = self._folder(result.seed, 'configs') / f'{stage}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(path)
        print_log(f'[{stage}] training; config {path}', logger='current')
        runner = Runner.from_cfg(Config.fromfile(path))
        runner.train()
        result.seconds[f'train {stage}'] = time.perf_counter() - start
        return runner

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


def _set_iterations(cfg: Config, iterations: int | None) -> None:
    if iterations is None:
        return
    cfg.train_cfg.max_iters = iterations
    cfg.train_cfg.val_interval = iterations
    for scheduler in cfg.param_scheduler:
        scheduler.total_steps = max(iterations, _SHORTEST_SCHEDULE)
    cfg.default_hooks.checkpoint.interval = iterations
    for hook in cfg.get('custom_hooks', []):
        if 'interval' in hook:
            hook.interval = iterations


def _last_checkpoint(folder: Path) -> Path:
    return Path((folder / 'last_checkpoint').read_text().strip())
