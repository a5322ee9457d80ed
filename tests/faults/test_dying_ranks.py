"""One of two processes dies: the other ends with a message within a minute, and both can be started again."""
import os
import signal
import socket
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import Command, difference, online_command, synthesize_command
from forks import LONG, Fork, kill

if TYPE_CHECKING:
    from small_run import SmallRun

pytestmark = pytest.mark.slow

MINUTE = 60.
RANKS = ['--launcher', 'pytorch', '--cfg-options', 'model_wrapper_cfg.type=MMDistributedDataParallel',
         'model_wrapper_cfg.device_ids=None', 'model_wrapper_cfg.broadcast_buffers=False']


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def as_rank(command: Command, rank: int, port: int, prepare: Callable[[], None] | None = None) -> Callable[[], None]:
    """The command as one of two ranks; what mmengine finds as a process group it takes, without asking for a GPU."""
    def action() -> None:
        import torch
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                           MASTER_PORT=str(port))
        torch.distributed.init_process_group('gloo')
        if prepare is not None:
            prepare()
        command.action()

    return action


def die_in_a_round() -> None:
    """End this rank when it has generated its share of a round, and the others wait for it."""
    module = import_module('mmsynth.engine.hooks.online_synthesis_hook')

    def gather_results(result: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    module.gather_results = gather_results


def die_in_an_iteration() -> None:
    """End this rank after its third iteration."""
    module = import_module('mmsynth.engine.hooks.online_synthesis_hook')
    update = module.OnlineSynthesisHook._update

    def dying(hook: object, runner: object, done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        update(hook, runner, done)

    module.OnlineSynthesisHook._update = dying


@pytest.mark.parametrize('dies', [1, 0] if LONG else [1])
@pytest.mark.parametrize('how', [die_in_a_round, die_in_an_iteration] if LONG else [die_in_a_round])
def test_a_rank_of_a_training_dies(how: Callable[[], None], dies: int, small_run: 'SmallRun', tmp_path: Path,
                                   survived: Callable) -> None:
    command, port = online_command(small_run, tmp_path, *RANKS), free_port()
    command.prepare()
    forks = [Fork(as_rank(command, rank, port, how if rank == dies else None), command.root, tmp_path / f'rank{rank}')
             for rank in range(2)]
    assert forks[dies].wait().status == -signal.SIGKILL
    begin = time.monotonic()
    left = forks[1 - dies].wait(MINUTE)
    assert time.monotonic() - begin < MINUTE
    assert left.status == 1 and 'Connection ' in left.error and 'by peer' in left.error, left  # closed, or reset
    port = free_port()
    forks = [Fork(as_rank(command, rank, port), command.root, tmp_path / f'rank{rank}') for rank in range(2)]
    for fork in forks:
        fork.wait().check()
    assert (command.root / 'work' / 'last_checkpoint').read_text().endswith('iter_6.pth')
    survived('a rank dies')


@pytest.mark.parametrize('dies', [0, 1] if LONG else [0])
def test_a_rank_of_a_synthesis_dies(dies: int, small_run: 'SmallRun', unbroken: Callable,
                                    commands: dict[str, Command], survived: Callable) -> None:
    """They do not wait for each other: the other one does its share, and says that one is missing."""
    whole, (reference, expected) = commands['synthesize'], unbroken('synthesize')
    shards = [synthesize_command(small_run, whole.root.parent, '--shard', f'{index}/2') for index in range(2)]
    whole.prepare()
    forks = [Fork(shards[index].action, whole.root, whole.scratch / f'shard{index}',
                  at=len(reference.writes) // 4 if index == dies else None, fault=kill) for index in range(2)]
    ended = [fork.wait(MINUTE if index != dies else 300) for index, fork in enumerate(forks)]
    assert ended[dies].status == -signal.SIGKILL
    assert ended[1 - dies].status == 0 and 'the last shard to finish completes them' in ended[1 - dies].output
    shards[dies].call().check()
    assert not difference(whole.result(whole.root), expected)
    survived('a rank dies')
