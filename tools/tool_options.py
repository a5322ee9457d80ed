"""What the tools share: options that mean the same in several of them, and the way to the package."""
import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def find_package() -> None:
    """Let a checkout that is not installed be imported."""
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def add_config_options(parser: argparse.ArgumentParser, example: str = '') -> None:
    """``--cfg-options``, as the host's tools have it."""
    from mmengine.config import DictAction
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config' + (f', e.g. {example}' if example else ''))


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``; without it that of ``mmsynth.utils.shards.default_device``."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one (under torchrun that '
                        'of the local rank)')


def add_shard_option(parser: argparse.ArgumentParser, work: str) -> None:
    """``--shard``, of processes that share some work."""
    parser.add_argument('--shard', metavar='I/N', help=f'this is process I of N, counted from 0, that {work}; default: '
                        'rank and world size under torchrun')


def shard_of(args: argparse.Namespace) -> Any:
    """The :class:`~mmsynth.utils.shards.Shard` of the option or of torchrun; None for a process alone."""
    from mmsynth.utils.shards import Shard
    return Shard.parse(args.shard) if args.shard else Shard.of_environment()
