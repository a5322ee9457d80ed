"""Synthesis while a segmentor trains: new samples, guided by the segmentor as it is, at set intervals."""
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_dist_info, get_rank, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, Runner
from PIL import Image
from torch import nn

from mmsynth.datasets.samplers import align_with_runner
from mmsynth.datasets.validation_guard import check_validation
from mmsynth.engine.hooks.training_samples import unwrap
from mmsynth.online.pool import GrowingPool
from mmsynth.online.request import InProcess, SynthesisRequest, SynthesisResult, gather_results
from mmsynth.online.settings import RoundSettings
from mmsynth.online.statistics import class_pixels, preview, round_line, round_scalars
from mmsynth.online.synthesizer import BUILD_SYNTHESIZER, RoundSynthesizer, synthesizer_arguments
from mmsynth.online.worker import WorkerProcess
from mmsynth.pool.rounds import Round, live_ids
from mmsynth.registry import HOOKS
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.utils.labels import check_ignore_index
from mmsynth.utils.ranks import broadcast_buffers, call_on_first_rank
from mmsynth.visualization.plots import plot_class_balance

STATE_KEY = 'mmsynth_online'
STAGING_FOLDER = '.staging'
_FRACTION = 10  # the part of an interval after which a pool that runs low gets its next round


@HOOKS.register_module()
class OnlineSynthesisHook(Hook):
    """Generate a round of samples every so often, and publish it in the pool that training draws from.

    The training set is a ``mmsynth.SyntheticAugmentDataset`` with the same ``pool``; a ``mmsynth.RatioBatchSampler``
    makes what is drawn a function of the iteration, so that a resumed training draws what an unbroken one would have.

    A round leaves the segmentor and everything random as it found them. It is generated in the training process, every
    rank its share, while training waits; or, with ``process``, in a worker process, whose samples come when they are
    finished, which differs from run to run.

    A round that fails is logged and lost. If it is the first, or the last of ``max_failures`` in a row, or if the
    worker process cannot be kept running, the training ends with the error, on all ranks.

    Checkpoints hold the number of rounds. A resume takes back what came after, and generates it again. Samples that are
    retired keep their files until the last checkpoint does not draw them: only that one, or a later, can be resumed.

    Args:
        pool: The pool's folder, kept for this run. A run that is not resumed removes an earlier run's samples.
        generator, masks, guidance, critic, filter, num_per_round: See :class:`~mmsynth.online.settings.RoundSettings`.
        interval: Iterations between rounds.
        begin: Iterations before the first round; a critic that is the segmentor in training needs some to be of use.
        min_live: With fewer live samples the next round comes after a tenth of the interval.
        max_samples: Live samples at most; the oldest retire.
        batch_size: Images generated together.
        seed: Of masks and noise.
        device: Where the generator runs; the segmentor's by default.
        process: None to generate in the training process; options of a :class:`~mmsynth.online.worker.WorkerProcess`
            (``dict()`` for its defaults) for a worker process, on the first rank's node.
        num_preview: Samples of a round in the visualizer's grid; 0 for none.
        seed_iterations: Seed torch's generator before every iteration, by its number and the rank. mmengine's
            checkpoints do not hold the generator's state: a model that draws from it in training (dropout) equals an
            unbroken run after a resume only with this.
        max_failures: Rounds that fail in a row, after which the training ends.

    Raises:
        ValueError: If options are out of range; all such are named at once.
    """

    priority = 'BELOW_NORMAL'  # after EMAHook, before a checkpoint is saved

    def __init__(self,
                 pool: str,
                 generator: Mapping[str, Any],
                 *,
                 masks: Mapping[str, Any] | None = None,
                 guidance: Mapping[str, Any] | None = None,
                 critic: str | Mapping[str, Any] | None = 'runner',
                 filter: Mapping[str, Any] | None = None,
                 interval: int = 1000,
                 begin: int = 0,
                 num_per_round: int = 64,
                 min_live: int = 0,
                 max_samples: int = 1024,
                 batch_size: int = 4,
                 seed: int = 0,
                 device: str | None = None,
                 process: Mapping[str, Any] | None = None,
                 num_preview: int = 8,
                 seed_iterations: bool = False,
                 max_failures: int = 3) -> None:
        lowest = dict(interval=(interval, 1), begin=(begin, 0), num_per_round=(num_per_round, 1),
                      min_live=(min_live, 0), max_samples=(max_samples, num_per_round), batch_size=(batch_size, 1),
                      num_preview=(num_preview, 0), max_failures=(max_failures, 1))
        wrong = [f'`{name}` must be at least {least}, got {value}' for name, (value, least) in lowest.items()
                 if isinstance(value, bool) or not isinstance(value, int) or value < least]
        if wrong:
            raise ValueError(f'OnlineSynthesisHook: {"; ".join(wrong)}.')
        self.pool, self.interval, self.begin, self.min_live = pool, interval, begin, min_live
        self.max_samples, self.batch_size, self.device = max_samples, batch_size, device
        self.max_failures, self.process, self.num_preview, self.seed_iterations = (
            max_failures, process, num_preview, seed_iterations)
        self._options: dict[str, Any] = dict(
            generator=generator, masks=masks, guidance=guidance, critic=critic, filter=filter,
            num_per_round=num_per_round, seed=seed)
        self._settings: RoundSettings  # from `before_train` on
        self._backend: InProcess | WorkerProcess | None = None  # in a worker process: on rank 0
        self._growing: GrowingPool | None = None  # on rank 0
        self._rounds: list[Round] = []
        self._next_round = 0
        self._last_request: int | None = None  # iterations that were done at the last request
        self._failures = 0  # rounds in a row
        self._fatal: str | None = None  # why the training must end
        self._resumed: Mapping[str, Any] | None = None
        self._replaced = 0  # samples of this rank whose files were damaged or gone since the last request
        self._saved = self._safe = 0  # iterations of the checkpoint saved last, and of the last that surely is whole
        self._last_file: str | None = None

    # --------------------------------------------------------------------------------------------------- start and end
    def before_run(self, runner: Runner) -> None:
        """Have everything closed however the training ends: mmengine calls no hook when it raises."""
        loop = runner._train_loop  # a config, or None, where the runner only validates
        if not isinstance(loop, BaseLoop):
            return
        run = loop.run

        def run_and_close() -> Any:
            try:
                return run()
            finally:
                self.close()

        loop.run = run_and_close

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep a checkpoint's state of the rounds, if training goes on from it."""
        if runner._resume:
            self._resumed = checkpoint.get(STATE_KEY, {})

    def before_train(self, runner: Runner) -> None:
        """Check the settings, build the generator, rewind the pool to where training stands, and start.

        Raises:
            ValueError: If validation would see the pool, the pool belongs to another config, or parts do not fit.
        """
        built = None if runner.val_loop is None else runner.val_dataloader
        check_validation(dict(val_dataloader=built, test_dataloader=runner.cfg.get('test_dataloader')), self.pool)
        check_ignore_index(runner.model)
        with isolated_random_state(self._options['seed']):  # models that are built draw weights
            self._settings = RoundSettings(**self._options)
            self._backend = self._build_backend(runner)
        self._rounds = list(call_on_first_rank(self._open_pool, runner))
        state = self._resumed or {}
        self._next_round, self._last_request = state.get('next_round', 0), state.get('last_order')
        self._failures, self._fatal = 0, None
        self._saved = self._safe = runner.iter
        self._last_file = _last_checkpoint(runner)
        align_with_runner(runner)
        if self._backend is not None:
            self._backend.start()
        self._update(runner, runner.iter)

    def _build_backend(self, runner: Runner) -> InProcess | WorkerProcess | None:
        """Build what serves this rank's requests; None on ranks that have none."""
        settings = self._settings
        device = self.device or str(next(unwrap(runner.model).parameters()).device)
        real = None if settings.filter is None else real_data(runner.cfg.train_dataloader.dataset)
        options: dict[str, Any] = dict(real=real, batch_size=self.batch_size, device=device)
        if self.process is None:
            synthesizer = RoundSynthesizer(settings, share=get_dist_info(), **options)
            synthesizer.check(live_segmentor(runner, settings.critic) if settings.needs_segmentor else None)
            return InProcess(synthesizer)
        if not is_main_process():
            return None
        arguments = synthesizer_arguments(runner.cfg, self._options, **options)
        return WorkerProcess(BUILD_SYNTHESIZER, arguments, f'{self.pool}/{STAGING_FOLDER}', **self.process)

    def _open_pool(self, runner: Runner) -> list[Round]:
        """Open the pool and take it to a checkpoint's state, or empty it for a new run; on rank 0."""
        settings = self._settings
        growing = GrowingPool(self.pool, settings.pool, settings.classes, settings.palette, self.max_samples)
        self._growing = growing
        if self._resumed == {}:
            runner.logger.warning('the checkpoint was saved without OnlineSynthesisHook; synthesis starts anew.')
        removed = growing.rewind((self._resumed or {}).get('published', 0))
        if removed:
            runner.logger.info(f'pool {self.pool}: {removed} samples removed that an earlier run made later than '
                               f'iteration {runner.iter}, where this one starts')
        missing = growing.missing(runner.iter)
        if missing:
            runner.logger.warning(
                f'pool {self.pool}: {len(missing)} samples that training draws are gone (the first is {missing[0]!r}), '
                'deleted, or retired before a later checkpoint than the resumed one; others come in their place.')
        return growing.rounds

    def close(self) -> None:
        """End the worker process and free the pool. Safe to call twice."""
        try:
            if self._backend is not None:
                self._backend.close()
        finally:
            if self._growing is not None:
                self._growing.close()

    # ------------------------------------------------------------------------------------------------- every iteration
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | Sequence | None = None) -> None:
        """Seed the iteration, if asked to."""
        if self.seed_iterations:
            torch.manual_seed(derive_seed(self._options['seed'], 'iteration', get_rank(), runner.iter))

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | Sequence | None = None,
                         outputs: dict | None = None) -> None:
        """Publish what is generated, and request a round when it is time.

        Raises:
            RuntimeError: If synthesis fails for good.
        """
        self._replaced += count_replaced(data_batch)
        self._update(runner, runner.iter + 1)

    def _update(self, runner: Runner, done: int) -> None:
        """Publish results and request a round if it is time, after ``done`` iterations; called by all ranks."""
        results: list[SynthesisResult] = []
        if self._backend is not None:
            results = self._backend.collect()
            if self._backend.idle and self._is_due(runner, done):
                self._request_round(runner, done, self._backend)
                results += self._backend.collect()
        for result in results:
            usable_from = done + batches_ahead(runner, together=self.process is None)
            if self.process is None:  # all ranks have a share
                round, failure = call_on_first_rank(self._publish, runner, gather_results(result), usable_from)
            else:
                round, failure = self._publish(runner, result, usable_from)
            self._count(round, failure)
        self._stop_if_failed(runner, done)

    def _is_due(self, runner: Runner, done: int) -> bool:
        if done < self.begin or done >= runner.max_iters:
            return False
        if self._last_request is None:
            return True
        waited = done - self._last_request
        if self.min_live and waited >= max(1, self.interval // _FRACTION):
            return waited >= self.interval or len(live_ids(self._rounds)) < self.min_live
        return waited >= self.interval

    def _request_round(self, runner: Runner, done: int, backend: InProcess | WorkerProcess) -> None:
        number, self._next_round, self._last_request = self._next_round, self._next_round + 1, done
        if self._replaced:
            runner.logger.warning(f'pool {self.pool}: {self._replaced} samples were drawn since the last round whose '
                                  'files are damaged or gone; others came in their place.')
        self._replaced = 0
        segmentor = live_segmentor(runner, self._settings.critic) if self._settings.needs_segmentor else None
        with broadcast_buffers(segmentor if self.process is None else None):
            backend.submit(SynthesisRequest(number, segmentor))

    def _publish(self, runner: Runner, result: SynthesisResult, usable_from: int) -> tuple[Round | None, str | None]:
        """Store a round and show it, on rank 0; return it, or None and why it failed."""
        assert self._growing is not None
        for message, count in result.statistics.get('failed', {}).items():
            runner.logger.warning(f'synthesis round {result.round}: {count} masks failed: {message}')
        failure = result.failure
        if failure is None:
            try:
                round = self._growing.publish(result.round, usable_from, result.samples,
                                              dropped=self._settings.masks.num_per_round - len(result.samples))
            except (OSError, ValueError) as error:
                failure = f'pool {self.pool} could not be written: {error}'
        if failure is not None:
            runner.logger.error(f'synthesis round {result.round} failed: {failure}')
            return None, f'round {result.round}: {failure}'
        live = len(self._growing.live())
        scalars = round_scalars(round, result.statistics, live, result.seconds)
        runner.logger.info(round_line(round, result.statistics, live, result.seconds))
        runner.message_hub.update_scalars(scalars)
        step, settings = runner.iter + 1, self._settings
        runner.visualizer.add_scalars(scalars, step=step)
        samples = result.samples[:self.num_preview]
        if samples:
            runner.visualizer.add_image('online_samples', preview(samples, settings.palette), step=step)
            counts = class_pixels(result.samples, len(settings.classes))
            if sum(counts):
                chart = Image.open(io.BytesIO(plot_class_balance(None, counts, settings.classes, settings.palette)))
                runner.visualizer.add_image('online_classes', np.asarray(chart.convert('RGB')), step=step)
        return round, None

    def _count(self, round: Round | None, failure: str | None) -> None:
        """Keep a published round, or count a failure and decide whether the training must end."""
        if round is not None:
            self._rounds.append(round)
            self._failures = 0
            return
        self._failures += 1
        if not self._rounds:
            self._fatal = f'the first round of synthesis failed; {failure}'
        elif self._failures >= self.max_failures:
            self._fatal = (f'{self._failures} rounds of synthesis in a row failed (`max_failures`='
                           f'{self.max_failures}), at last {failure}')

    def _stop_if_failed(self, runner: Runner, done: int) -> None:
        """End the training on all ranks if synthesis failed for good; a training that is done anyway may end well."""
        if self._backend is not None and self._backend.ended is not None and self._fatal is None:
            self._fatal = self._backend.ended
        if self.process is not None and get_world_size() > 1:  # only rank 0 knows, and one that left alone would hang
            if done % max(1, self.interval // _FRACTION):
                return
            self._fatal = call_on_first_rank(lambda: self._fatal)
        if self._fatal is not None and done < runner.max_iters:
            raise RuntimeError(f'OnlineSynthesisHook: {self._fatal}. The training ends, because it would go on without '
                               'new synthetic samples. Repair the cause and start it again, with --resume if there is '
                               'a checkpoint.')

    # ----------------------------------------------------------------------------------------------------- checkpoints
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the state of the rounds into a checkpoint, and delete what no checkpoint needs any more."""
        checkpoint[STATE_KEY] = dict(
            published=len(self._rounds), next_round=self._next_round, last_order=self._last_request)
        found = _last_checkpoint(runner)
        if found != self._last_file:  # mmengine notes a checkpoint when it is whole: so the last one was
            self._last_file, self._safe = found, self._saved
        self._saved = checkpoint['meta']['iter']
        if self._growing is not None:
            try:
                self._growing.sweep(self._safe)
            except OSError as error:
                runner.logger.warning(f'pool {self.pool}: retired samples could not be deleted: {error}; it is tried '
                                      'again at the next checkpoint.')


def live_segmentor(runner: Runner, critic: str | Mapping[str, Any] | None) -> nn.Module:
    """Return the segmentor in training, or its average where the critic is 'ema'; not a copy.

    Raises:
        ValueError: If an average is asked for and there is none.
    """
    if critic != 'ema':
        return unwrap(runner.model)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return hook.ema_model.module
    raise ValueError("`critic='ema'` is the average that mmengine's EMAHook keeps; add dict(type='EMAHook') to "
                     "`custom_hooks`, or use 'runner'.")


def real_data(cfg: Any) -> Any:
    """Return a config of data sets, as plain dicts, with the real one in the place of each SyntheticAugmentDataset."""
    if isinstance(cfg, ConfigDict):
        cfg = cfg.to_dict()
    if isinstance(cfg, Mapping):
        if str(cfg.get('type')).split('.')[-1] == 'SyntheticAugmentDataset':
            return real_data(cfg['dataset'])
        return {key: real_data(value) for key, value in cfg.items()}
    return [real_data(value) for value in cfg] if isinstance(cfg, list) else cfg


def batches_ahead(runner: Runner, *, together: bool) -> int:
    """Return how many batches may be drawn that training has not taken yet, at the end of an iteration.

    Args:
        runner: The run.
        together: Whether all ranks learn of a round at once. If not, those without news are ahead by as much as they
            do between two synchronisations.
    """
    loader = runner.train_dataloader
    ahead = (loader.prefetch_factor or 2) * loader.num_workers
    if not together and get_world_size() > 1:
        ahead += 1 + getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    return ahead


def count_replaced(data_batch: Any) -> int:
    """Count the samples of a batch that came in the place of others whose files are damaged or gone."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, Mapping) else ()
    return sum(int(sample.get('replaced', 0)) for sample in samples)


def _last_checkpoint(runner: Runner) -> str | None:
    """Return what mmengine noted as the last checkpoint that is whole; None before the first."""
    path = Path(runner.work_dir) / 'last_checkpoint'
    return path.read_text() if path.is_file() else None
