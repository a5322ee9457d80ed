"""Convert LoveDA: Train.zip, Val.zip and Test.zip, or what is in them, to what the loveda configs read."""
import argparse
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, out_dir='data/loveDA', tile_size=None, epilog=(
        'Example: python tools/dataset_converters/loveda.py downloads/LoveDA'))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert."""
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import loveda
    run(args, lambda: loveda(args.source))


if __name__ == '__main__':
    main()
