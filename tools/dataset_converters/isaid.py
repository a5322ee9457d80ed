"""Convert iSAID with DOTA's images to what mmseg's iSAID configs read."""
import argparse
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, out_dir='data/iSAID', tile_size=896, stride=512, epilog=(
        'Example: python tools/dataset_converters/isaid.py downloads/iSAID'))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert."""
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import isaid
    run(args, lambda: isaid(args.source))


if __name__ == '__main__':
    main()
