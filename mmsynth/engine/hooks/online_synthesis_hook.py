"""Synthesis while a segmentor trains: new samples, asked of the segmentor as it is, at set intervals (DESIGN 11)."""
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import get_dist_info, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsynth.datasets.samplers import align_with_runner
from mmsynth.datasets.synthetic_augment import check_validation
from mmsynth.engine.hooks.online_parts import (
    batches_ahead,
    count_replaced,
    last_checkpoint,
    live_segmentor,
    model_device,
    real_data,
    show_round,
    validation_loaders,
)
from mmsynth.online.child_painter import FACTORY, painter_settings
from mmsynth.online.growing_pool import GrowingPool
from mmsynth.online.orders import Answer, InProcess, Order, Painting
from mmsynth.online.plan import RefreshPlan
from mmsynth.online.process import RefreshProcess
from mmsynth.online.refresher import PoolRefresher
from mmsynth.online.sharing import first_ranks_buffers, gather_answers, tell_all
from mmsynth.pool.rounds import Round, live_ids
from mmsynth.registry import HOOKS
from mmsynth.utils import derive_seed, isolated_random_state
from mmsynth.utils.labels import check_ignore_index

STATE_KEY = 'mmsynth_online'
STAGING_FOLDER = '.staging'
_HURRY = 10  # the part of an interval after which a pool that runs low gets its next round


@HOOKS.register_module()
class OnlineSynthesisHook(Hook):
    """Paints a round of samples every so often, and publishes it in the pool that training draws from.

    The training set is a ``mmsynth.SyntheticAugmentDataset`` with the same ``pool``; a ``mmsynth.RatioBatchSampler``
    makes what is drawn a function of the iteration, so that a resumed training draws what an unbroken one would have.

    A round leaves the segmentor and everything random as it found them. It is painted in the training process, every
    rank its share, while training waits; or, with ``process``, in a process of its own, whose samples come when they
    are there, which differs from run to run. A round that fails is logged and lost; training goes on.

    Checkpoints hold the number of rounds. A resume takes back what came after, and makes it again. Samples that are
    retired keep their files until the last checkpoint does not draw them: only that one, or a later, can be resumed.

    Args:
        pool: The pool's folder, kept for this run. A run that is not resumed takes an earlier run's samples out.
        generator, masks, guidance, critic, filter, num_per_round: See :class:`~mmsynth.online.plan.RefreshPlan`.
        interval: Iterations between rounds.
        begin: Iterations before the first; by then the segmentor should know something, if it is the critic.
        min_live: With fewer live samples the next round comes after a tenth of the interval.
        max_samples: Live samples at most; the oldest retire.
        batch_size: Images painted together.
        seed: Of masks and noise.
        device: Where the generator runs; the segmentor's by default.
        process: None to paint in the training process; options of a :class:`~mmsynth.online.process.RefreshProcess`
            (``dict()`` for its defaults) for one of its own, on the first rank's node.
        num_preview: Samples of a round in the visualizer's grid; 0 for none.
        seed_iterations: Seed torch's generator before every iteration, by its number and the rank. The host's
            checkpoints do not hold the generator's state: a model that draws from it in training (dropout) equals an
            unbroken run after a resume only with this.

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
                 seed_iterations: bool = False) -> None:
        _check(interval=(interval, 1), begin=(begin, 0), num_per_round=(num_per_round, 1), min_live=(min_live, 0),
               max_samples=(max_samples, num_per_round), batch_size=(batch_size, 1), num_preview=(num_preview, 0))
        self.pool, self.interval, self.begin, self.min_live = pool, interval, begin, min_live
        self.max_samples, self.batch_size, self.device = max_samples, batch_size, device
        self.process, self.num_preview, self.seed_iterations = process, num_preview, seed_iterations
        self._plan_options = dict(generator=generator, masks=masks, guidance=guidance, critic=critic, filter=filter,
                                  num_per_round=num_per_round, seed=seed)
        self._plan: RefreshPlan | None = None
        self._painting: Painting | None = None
        self._growing: GrowingPool | None = None  # on rank 0
        self._rounds: list[Round] = []
        self._next_round = 0
        self._last_order: int | None = None  # iterations that were done at the last order
        self._resumed: Mapping[str, Any] | None = None
        self._replaced = 0  # samples of this rank whose files were damaged or gone since the last round was told
        self._saved = self._safe = 0  # iterations of the checkpoint saved last, and of the last that surely is whole
        self._last_file: str | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what a checkpoint says of the rounds, if training goes on from it."""
        if runner._resume:
            self._resumed = checkpoint.get(STATE_KEY, {})

    def before_train(self, runner: Runner) -> None:
        """Check the setting, build what paints, bring the pool to where training stands, and start.

        Raises:
            ValueError: If validation would see the pool, the pool belongs to another config, or parts do not fit.
        """
        check_validation(validation_loaders(runner), self.pool)
        check_ignore_index(runner.model)
        with isolated_random_state(self._plan_options['seed']):  # models that are built draw weights
            self._plan = RefreshPlan(**self._plan_options)
            self._painting = self._build_painting(runner)
        if is_main_process():
            self._growing = GrowingPool(self.pool, self._plan.settings, self._plan.classes, self._plan.palette,
                                        self.max_samples)
            self._go_to(runner)
        self._rounds = list(tell_all(None if self._growing is None else self._growing.rounds))
        state = self._resumed or {}
        self._next_round, self._last_order = state.get('next_round', 0), state.get('last_order')
        self._saved = self._safe = runner.iter
        self._last_file = last_checkpoint(runner)
        align_with_runner(runner)
        if self._painting is not None:
            self._painting.start()
        self._refresh(runner, runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | Sequence | None = None) -> None:
        """Seed the iteration, if asked to."""
        if self.seed_iterations:
            torch.manual_seed(derive_seed(self._plan_options['seed'], 'iteration', get_rank(), runner.iter))

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: dict | Sequence | None = None,
                         outputs: dict | None = None) -> None:
        """Publish what is painted, and order a round when it is time."""
        self._replaced += count_replaced(data_batch)
        self._refresh(runner, runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the state of the rounds into a checkpoint, and delete what no checkpoint needs any more."""
        checkpoint[STATE_KEY] = dict(
            published=len(self._rounds), next_round=self._next_round, last_order=self._last_order)
        found = last_checkpoint(runner)
        if found != self._last_file:  # the host notes a checkpoint when it is whole: so the last one was
            self._last_file, self._safe = found, self._saved
        self._saved = checkpoint['meta']['iter']
        if self._growing is not None:
            try:
                self._growing.sweep(self._safe)
            except OSError as error:
                runner.logger.warning(f'pool {self.pool}: retired samples could not be deleted: {error}; it is tried '
                                      'again at the next checkpoint.')

    def after_train(self, runner: Runner) -> None:
        """End the painting process, and free the pool."""
        if self._painting is not None:
            self._painting.close()
        if self._growing is not None:
            self._growing.close()

    # ------------------------------------------------------------------------------------------------------- start
    def _build_painting(self, runner: Runner) -> Painting | None:
        """Where orders of this rank are carried out; None on ranks that have none."""
        plan, device = self._plan, self.device or model_device(runner)
        options = dict(real=real_data(runner) if plan.filter is not None else None, batch_size=self.batch_size,
                       device=device)
        if self.process is None:
            refresher = PoolRefresher(plan, share=get_dist_info(), **options)
            refresher.check(live_segmentor(runner, plan.critic) if plan.needs_segmentor else None)
            return InProcess(refresher)
        if not is_main_process():
            return None
        settings = painter_settings(runner.cfg, self._plan_options, options)
        return RefreshProcess(FACTORY, settings, f'{self.pool}/{STAGING_FOLDER}', **self.process)

    def _go_to(self, runner: Runner) -> None:
        """Bring the pool to where training stands: to a checkpoint's state, or empty for a new run."""
        if self._resumed == {}:
            runner.logger.warning('the checkpoint was saved without OnlineSynthesisHook; synthesis starts anew.')
        removed = self._growing.rewind((self._resumed or {}).get('published', 0))
        if removed:
            runner.logger.info(f'pool {self.pool}: {removed} samples removed that an earlier run made later than '
                               f'iteration {runner.iter}, where this one starts')
        missing = self._growing.missing(runner.iter)
        if missing:
            runner.logger.warning(
                f'pool {self.pool}: {len(missing)} samples that training draws are gone (the first is {missing[0]!r}), '
                'deleted, or retired before a later checkpoint than the resumed one; others come in their place.')

    # ------------------------------------------------------------------------------------------------------ rounds
    def _refresh(self, runner: Runner, done: int) -> None:
        """What there is to do when so many iterations are done."""
        if self._painting is None:
            return
        answers = self._painting.collect()
        if self._painting.idle and self._is_due(runner, done):
            number, self._next_round, self._last_order = self._next_round, self._next_round + 1, done
            self._tell_replaced(runner)
            segmentor = live_segmentor(runner, self._plan.critic) if self._plan.needs_segmentor else None
            with first_ranks_buffers(segmentor if self.process is None else None):
                self._painting.submit(Order(number, segmentor=segmentor))
            answers += self._painting.collect()
        for answer in answers:
            self._take(runner, answer, done)

    def _is_due(self, runner: Runner, done: int) -> bool:
        if done < self.begin or done >= runner.max_iters:
            return False
        if self._last_order is None:
            return True
        waited = done - self._last_order
        if waited >= self.interval or not self.min_live or waited < max(1, self.interval // _HURRY):
            return waited >= self.interval
        return len(live_ids(self._rounds)) < self.min_live

    def _tell_replaced(self, runner: Runner) -> None:
        if self._replaced:
            runner.logger.warning(f'pool {self.pool}: {self._replaced} samples were drawn since the last round whose '
                                  'files are damaged or gone; others came in their place.')
        self._replaced = 0

    def _take(self, runner: Runner, answer: Answer, done: int) -> None:
        """Publish an answer; all ranks know of it afterwards."""
        together = self.process is None
        whole = gather_answers(answer) if together else answer
        usable_from = done + batches_ahead(runner, together=together)
        round = None if whole is None else self._publish(runner, whole, usable_from)
        round = tell_all(round) if together else round
        if round is not None:
            self._rounds.append(round)

    def _publish(self, runner: Runner, answer: Answer, usable_from: int) -> Round | None:
        """Store a round and tell of it, on rank 0; None if it is lost."""
        if answer.error is not None:
            return _lost(runner, answer, answer.error)
        try:
            round = self._growing.publish(answer.round, usable_from, answer.samples,
                                          dropped=self._plan.masks.num_per_round - len(answer.samples))
        except (OSError, ValueError) as error:
            return _lost(runner, answer, f'pool {self.pool} could not be written: {error}')
        for message, count in answer.facts.get('failed', {}).items():
            runner.logger.warning(f'synthesis round {answer.round}: {count} masks could not be painted: {message}')
        show_round(runner, round, answer, live=len(self._growing.live()), plan=self._plan, pictures=self.num_preview)
        return round


def _lost(runner: Runner, answer: Answer, reason: str) -> None:
    runner.logger.log(logging.ERROR, f'synthesis round {answer.round} is lost, training goes on: {reason}')


def _check(**options: tuple[int, int]) -> None:
    """Raise ValueError if an option is below its lowest value."""
    wrong = [f'`{name}` must be at least {lowest}, got {value}' for name, (value, lowest) in options.items()
             if isinstance(value, bool) or not isinstance(value, int) or value < lowest]
    if wrong:
        raise ValueError(f'OnlineSynthesisHook: {"; ".join(wrong)}.')
