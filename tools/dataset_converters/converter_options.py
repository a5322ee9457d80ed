"""What the converters share: their options, and how they run."""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def make_parser(description: str, out_dir: str | None, tile_size: int | None, stride: int | None = None,
                epilog: str = '') -> argparse.ArgumentParser:
    """A parser with the options that every converter has.

    Args:
        description: What is converted.
        out_dir: Where the shipped config looks for it; None if there is none.
        tile_size: Default.
        stride: Default.
        epilog: An example.
    """
    parser = argparse.ArgumentParser(
        description=description + ' What is written appears when it is complete. Layouts, licences and links: '
        'docs/en/dataset_prepare.md.', epilog=epilog)
    parser.add_argument('source', help='folder of the archive, unpacked or not')
    parser.add_argument('--out-dir', default=out_dir, required=out_dir is None,
                        help='new folder to write' + (f'; default: {out_dir}' if out_dir else ''))
    parser.add_argument('--dry-run', action='store_true', help='read and check everything, print the summary, write '
                        'nothing')
    parser.add_argument('--tile-size', type=int, default=tile_size or 0, metavar='PIXELS',
                        help=f'side of the tiles, 0 for whole images; default: {tile_size or 0}')
    parser.add_argument('--stride', type=int, metavar='PIXELS',
                        help=f'from one tile to the next; default: {stride or "the side of a tile"}')
    parser.add_argument('--min-labelled', type=float, default=0.0, metavar='SHARE',
                        help='leave tiles out of which a smaller share is labelled, 0 … 1; default: 0 (tiles without '
                        'any label are always left out)')
    parser.set_defaults(usual_tiles=(tile_size, stride))
    parser.add_argument('--unknown-labels', choices=['refuse', 'ignore'], default='refuse',
                        help='labels that the class table does not know; default: refuse')
    return parser


def add_stretch_options(parser: argparse.ArgumentParser) -> None:
    """How images of more than 8 bits become 8-bit ones."""
    parser.add_argument('--stretch', choices=['auto', 'none', 'percentile', 'range'], default='auto',
                        help='how values become 0 … 255, per band; default: auto (8-bit images as they are, others by '
                        'percentile)')
    parser.add_argument('--percentiles', type=float, nargs=2, default=[2, 98], metavar=('LOW', 'HIGH'),
                        help='that become 0 and 255; default: 2 98')
    parser.add_argument('--stretch-over', choices=['set', 'image'], default='set',
                        help='take percentiles of all images together or of each by itself; default: set')
    parser.add_argument('--range', type=float, nargs=2, metavar=('LOW', 'HIGH'),
                        help='values that become 0 and 255, for --stretch range')


def add_split_options(parser: argparse.ArgumentParser, val_share: float) -> None:
    """Which images validate and test: places by name or by share, or lists."""
    parser.add_argument('--places', metavar='REGEX',
                        help="whose first group names the place of an image, such as '^([^_]+)_'; a place is never in "
                        'two parts; default: each image is a place, unless the set has places')
    parser.add_argument('--val', nargs='+', default=[], metavar='PLACE', help='places to validate on')
    parser.add_argument('--test', nargs='+', default=[], metavar='PLACE', help='places to test on')
    parser.add_argument('--val-share', type=float, metavar='SHARE',
                        help='this share of the places validates, chosen by --seed; default: '
                        f'{val_share:g} where nothing else says')
    parser.add_argument('--test-share', type=float, metavar='SHARE', help='the same for the test part; default: 0')
    for part in ('train', 'val', 'test'):
        parser.add_argument(f'--{part}-list', metavar='FILE', help=f'names of the images of {part}, one per line')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of places; default: 0')


def split_rule(args: argparse.Namespace, val_share: float) -> Any:
    """The :class:`SplitRule` of the options, or None; ``val_share`` is for those that do not say what validates."""
    from mmsynth.datasets.conversion import SplitRule
    lists = {part: Path(getattr(args, f'{part}_list')) for part in ('train', 'val', 'test')
             if getattr(args, f'{part}_list')}
    decided = bool(args.val or args.test or lists) or (args.val_share, args.test_share) != (None, None)
    if not decided and args.places is None:
        return None
    return SplitRule(
        places=args.places or SplitRule.places, val=tuple(args.val), test=tuple(args.test),
        val_share=(args.val_share or 0.0) if decided else val_share, test_share=args.test_share or 0.0, lists=lists,
        seed=args.seed)


def stretch_rule(args: argparse.Namespace) -> Any:
    """The :class:`StretchRule` of the options."""
    from mmsynth.datasets.conversion import StretchRule
    value_range = tuple(args.range) if args.range else None
    return StretchRule(args.stretch, tuple(args.percentiles), args.stretch_over, value_range)


def find_package() -> None:
    """Let a checkout that is not installed be imported."""
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def run(args: argparse.Namespace, find: Callable[[], tuple[list, Any]], **settings: Any) -> None:
    """Convert, print the summary; a user's mistake ends with its message alone.

    Args:
        args: The options.
        find: Gives the pairs and the recipe.
        settings: Change the recipe.
    """
    from dataclasses import replace

    from rich.console import Console

    from mmsynth.datasets.conversion import convert
    try:
        pairs, recipe = find()
        usual_size, usual_stride = args.usual_tiles
        stride = usual_stride if args.stride is None and args.tile_size == usual_size else args.stride
        recipe = replace(recipe, tile_size=args.tile_size or None, stride=stride, min_labelled=args.min_labelled,
                         unknown_labels=args.unknown_labels, **settings)
        summary = convert(pairs, recipe, args.out_dir, dry_run=args.dry_run)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'error: {error}')
    Console().print(summary.table())
    print('dry run: nothing was written' if args.dry_run else f'written: {args.out_dir}')
