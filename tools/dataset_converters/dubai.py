"""Convert the Dubai set of MBRSC and Humans in the Loop to what the dubai configs read."""
import argparse
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, out_dir='data/dubai_mbrsc', tile_size=None, epilog=(
        'Example: python tools/dataset_converters/dubai.py downloads/archive.zip'))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert."""
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import dubai
    run(args, lambda: dubai(args.source))


if __name__ == '__main__':
    main()
