"""Convert iSAID with DOTA's images to what mmseg's iSAID configs read."""
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser(__doc__, out_dir='data/iSAID', tile_size=896, stride=512, epilog=(
        'Example: python tools/dataset_converters/isaid.py downloads/iSAID')).parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import isaid
    run(args, lambda: isaid(args.source))


if __name__ == '__main__':
    main()
