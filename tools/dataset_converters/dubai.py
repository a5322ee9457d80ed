"""Convert the Dubai set of MBRSC and Humans in the Loop to what the dubai configs read."""
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser(__doc__, out_dir='data/dubai_mbrsc', tile_size=None, epilog=(
        'Example: python tools/dataset_converters/dubai.py downloads/archive.zip')).parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import dubai
    run(args, lambda: dubai(args.source))


if __name__ == '__main__':
    main()
