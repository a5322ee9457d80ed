"""Convert a folder of your own GeoTIFF, PNG or JPEG images and their masks to what configs and `make demo` read."""
import argparse
from collections.abc import Sequence
from pathlib import Path

from converter_options import (
    add_split_options,
    add_stretch_options,
    find_package,
    make_parser,
    run,
    split_rule,
    stretch_rule,
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, out_dir=None, tile_size=None, epilog=(
        "Example: python tools/dataset_converters/folder.py my_area --out-dir data/mine --class-table classes.csv "
        "--bands 3 2 1 --tile-size 512 --places '^([^_]+)_' --val north"))
    parser.add_argument('--images', default='images', metavar='FOLDER', help='of images in source; default: images')
    parser.add_argument('--masks', default='masks', metavar='FOLDER', help='of masks in source; default: masks')
    parser.add_argument('--mask-suffix', default='', metavar='TEXT',
                        help="what follows an image's name in that of its mask, such as _label; default: nothing")
    parser.add_argument('--class-table', metavar='FILE',
                        help='JSON or CSV: value or colour in the masks, and class or ignore; default: meta.json in '
                        'source, whose "classes" stand for 0, 1, 2 …, and 255 for no label')
    parser.add_argument('--colour-tolerance', type=int, default=0, metavar='N',
                        help='a colour in a mask may differ by so much per channel from that in the table; default: 0')
    parser.add_argument('--layout', choices=['manifest', 'folders'], default='manifest',
                        help='manifest: images/, masks/, train.jsonl …, for ManifestDataset and make demo; folders: '
                        "img_dir/train/, ann_dir/train/ …, for mmseg's own data sets; default: manifest")
    parser.add_argument('--skip-unlabelled', action='store_true', help='leave images without a mask out')
    parser.add_argument('--name', help='of the set; default: the name of the source folder')
    parser.add_argument('--bands', type=int, nargs='+', metavar='N',
                        help='which bands are red, green and blue, from 1: --bands 3 2 1; one number for grey')
    add_stretch_options(parser)
    add_split_options(parser, val_share=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion import read_class_table
    from mmsynth.datasets.conversion.archives import own_folder
    source = Path(args.source)
    run(args, lambda: own_folder(
        source,
        read_class_table(args.class_table or source / 'meta.json', args.colour_tolerance),
        title=args.name or source.resolve().name,
        images=args.images,
        masks=args.masks,
        mask_suffix=args.mask_suffix,
        rule=split_rule(args, val_share=0),
        skip_unlabelled=args.skip_unlabelled,
        layout=args.layout,
        bands=tuple(args.bands) if args.bands else None,
        stretch=stretch_rule(args)))


if __name__ == '__main__':
    main()
