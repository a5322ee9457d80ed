"""Generate images for masks and store them as a pool that any mmseg config can train from."""
import argparse
import sys

from tool_options import add_config_options, add_device_option, add_shard_option, find_package, shard_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' A run that was killed continues where it was when called again. Several processes '
        'generate one pool by --shard, or under torchrun.',
        epilog='Example: python tools/synthesize.py projects/demo/configs/todsynth.py work_dirs/todsynth/iter_600.pth '
        '--out-dir work_dirs/pool --limit 16')
    parser.add_argument('config', help='config with `model` (a generator) and `synthesis` (masks, guidance)')
    parser.add_argument('checkpoint', nargs='?', help="the generator's weights: a file, or a release's folder; left "
                        'out for one that comes whole from a backbone, such as mmsynth.DiffusersControlNet')
    parser.add_argument('--out-dir', required=True, help='folder of the pool: img_dir/, ann_dir/, manifest.jsonl')
    parser.add_argument('--guidance', choices=['crfm', 'best-of-n', 'none'],
                        help="correct each step by the critic in the config, generate several and keep the critic's "
                        'best, or neither; default: what the config has')
    parser.add_argument('--candidates', type=int, help="images generated per sample by best-of-n; default: the "
                        "config's, or 4")
    parser.add_argument('--latent-critic', metavar='FILE',
                        help='what tools/train_latent_critic.py wrote; guides in the place of the config\'s critic, '
                        'without decoding')
    parser.add_argument('--num-per-mask', type=int, help="images per mask; default: the config's, or 1")
    parser.add_argument('--limit', type=int, help='use only the first LIMIT masks')
    parser.add_argument('--seed', type=int, default=0, help='seed of the run; default: 0')
    parser.add_argument('--batch-size', type=int,
                        help='images generated together; changes speed and memory, and the images by rounding at most; '
                        "default: the config's, or 4")
    parser.add_argument('--filter', action='store_true',
                        help='also filter each sample by `synthesis.filter` of the config, as tools/filter_pool.py '
                        'would afterwards')
    add_shard_option(parser, 'generate one pool; the last to finish merges their lists')
    parser.add_argument('--files-per-folder', type=int, metavar='N',
                        help='images go to img_dir/000, 001 …, so many in each; default: 10000 where there are more '
                        'images, otherwise no such folders')
    add_device_option(parser)
    add_config_options(parser, 'model.num_steps=50')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from mmsynth.apis import synthesize
    from mmsynth.apis.synthesize import NotFiniteError
    from mmsynth.synthesis.build import load_config
    from mmsynth.utils.shards import default_device
    try:
        pool = synthesize(
            load_config(args.config, args.cfg_options),
            args.checkpoint,
            args.out_dir,
            guidance=args.guidance,
            candidates=args.candidates,
            latent_critic=args.latent_critic,
            num_per_mask=args.num_per_mask,
            limit=args.limit,
            seed=args.seed,
            batch_size=args.batch_size,
            filter=args.filter,
            shard=shard_of(args),
            files_per_folder=args.files_per_folder,
            device=args.device or default_device())
    except NotFiniteError as error:
        sys.exit(str(error))
    print(f'{len(pool)} samples in {pool.root}', end='')
    print(f'; look at {pool.root}/preview.png and {pool.root}/report.html' if (pool.root / 'report.html').is_file()
          else '; the last shard to finish completes them')


if __name__ == '__main__':
    main()
