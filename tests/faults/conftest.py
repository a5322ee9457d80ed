"""What the tests of faults share: the commands, what unbroken runs of them leave, and the table of faults survived."""
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from commands import Command
    from forks import Ended
    from small_run import SmallRun


@pytest.fixture(scope='module', autouse=True)
def small_heap() -> Iterator[None]:
    """mmengine collects garbage for every data set that is built, which takes 0.3 s with all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Counts faults that were survived: ``survived(kind, count)``."""
    def count(kind: str, number: int = 1) -> None:
        request.node.user_properties.append(('survived', (kind, number)))

    return count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, where these tests alone are run."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, value in getattr(report, 'user_properties', ()):
            if name == 'survived' and report.when == 'call':
                counts[value[0]] += value[1]
    if counts:
        width = max(map(len, counts))
        terminalreporter.section('faults survived')
        for kind, number in [*sorted(counts.items()), ('together', sum(counts.values()))]:
            terminalreporter.write_line(f'{kind:<{width}}  {number:>6}')


@pytest.fixture(scope='session')
def commands(small_run: 'SmallRun', tiny_sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, 'Command']:
    """All commands, by name."""
    from commands import (
        encode_command,
        filter_command,
        online_command,
        synthesize_command,
        train_command,
    )

    from mmsynth.apis import fit_class_loss
    from mmsynth.synthesis.build import load_config
    folder = tmp_path_factory.mktemp('faults')
    fit_class_loss(load_config(small_run.critic_config_file), small_run.critic).write(folder / 'losses.json')
    generated = small_run.synthesize(folder / 'generated', guidance='none', num_per_mask=2).root
    made = [synthesize_command(small_run, folder), filter_command(small_run, folder, generated, folder / 'losses.json'),
            encode_command('prompts', tiny_sd3, folder), encode_command('latents', tiny_sd3, folder),
            train_command(small_run, folder), online_command(small_run, folder)]
    return {command.name: command for command in made}


@pytest.fixture(scope='session')
def unbroken(commands: dict[str, 'Command']) -> Callable[[str], tuple['Ended', dict[str, Any]]]:
    """How an unbroken run of a command ended, and what it left; run once."""
    done: dict[str, tuple[Ended, dict[str, Any]]] = {}

    def of(name: str) -> tuple['Ended', dict[str, Any]]:
        if name not in done:
            command = commands[name]
            command.prepare()
            ended = command.call().check()
            done[name] = ended, command.result(command.root)
        return done[name]

    return of


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never ends the machine: a disk that is busy makes every fsync wait."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


@pytest.fixture(scope='module')
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three masks; its manifest is ``list.jsonl``."""
    from mutations import dump
    root = tmp_path_factory.mktemp('masks')
    lines = []
    for name in 'abc':
        Image.fromarray(np.full((8, 8), ord(name) % 3, np.uint8)).save(root / f'{name}.png')
        lines.append(dict(source=f'{name}.png', prompt=f'a picture of {name}'))
    (root / 'list.jsonl').write_bytes(dump(lines))
    return root
