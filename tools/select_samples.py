"""Select the samples of a filtered pool to train on: by weak classes, valid pixels and hardness."""
import argparse
from pathlib import Path

from tool_options import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__ + """

A sample that still shows a weak class is kept; others if enough of their pixels are valid. With --max-repeats R every
kept sample is listed 1 to R times, more often the harder its mask is. Written into the pool:

  selected.txt           names to train on, repeated ones several times: an `ann_file` for mmseg
  images_per_mask.json   how many images to generate for each mask in a further run""",
        epilog="""Train on the selection:
  dict(type='BaseSegDataset', data_root='POOL', ann_file='selected.txt', img_suffix='.png',
       data_prefix=dict(img_path='img_dir', seg_map_path='filtered'), metainfo=..., pipeline=...)
Generate more images for hard masks:
  synthesis = dict(dataset=dict(type='mmsynth.ChosenMasks', images_per_mask='POOL/images_per_mask.json', dataset=...))

Example: python tools/select_samples.py work_dirs/pool --worst 3 --scores work_dirs/val/20250101_000000.log
         --max-repeats 3""")
    parser.add_argument('pool', help='folder of a pool that tools/filter_pool.py has filtered')
    parser.add_argument('--weak-classes', nargs='+', default=[], metavar='NAME', help='classes that keep a sample')
    parser.add_argument('--worst', type=int, metavar='K', help='take the K worst classes of --scores as weak, too')
    parser.add_argument('--scores', metavar='FILE', help='IoU of every class: JSON {"road": 41.2, ...}, scalars.json '
                        'of mmsynth.MaskConsistency, or the .log of an evaluation by mmseg')
    parser.add_argument('--min-valid', type=float, metavar='SHARE', help='keep others if more than this share of '
                        'their pixels is valid, in [0, 1]; default: those that the filter kept')
    parser.add_argument('--max-repeats', type=int, default=1, metavar='R',
                        help='how often samples of the hardest masks are listed; default: 1, none is repeated')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from rich.console import Console

    from mmsynth.apis import select_samples
    from mmsynth.filtering.summary import selection_table
    from mmsynth.pool import Pool
    selection = select_samples(args.pool, weak_classes=args.weak_classes, worst=args.worst, scores=args.scores,
                               min_valid=args.min_valid, max_repeats=args.max_repeats)
    Console().print(selection_table(Pool.open(args.pool), selection))
    kept = sum(count > 0 for count in selection.repeats.values())
    print(f'{kept} of {len(selection.repeats)} samples selected, {len(selection.lines())} lines in '
          f'{Path(args.pool) / "selected.txt"}; images_per_mask.json beside it')


if __name__ == '__main__':
    main()
