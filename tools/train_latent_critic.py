"""Train a critic that reads latents, so that guidance needs no decode."""
import argparse

from tool_options import add_config_options, add_device_option, find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' It learns from the segmentor of the config (synthesis.guidance.critic) what that says '
        'of decoded latents: of the labelled training images, and of the clean estimates that the generator makes. '
        'Prints how well both agree on held-out images: those of the val_dataloader, or a tenth of the training '
        'images.',
        epilog="Example: python tools/train_latent_critic.py projects/demo/configs/todsynth.py "
        "work_dirs/todsynth/iter_600.pth "
        "--out work_dirs/latent_critic.safetensors. Then tools/synthesize.py --latent-critic FILE, or in the config "
        "guidance=dict(type='mmsynth.CRFM', critic=dict(type='mmsynth.LatentCritic', "
        "checkpoint='work_dirs/latent_critic.safetensors'))")
    parser.add_argument('config', help='config with `model` (a generator), `train_dataloader` and '
                        '`synthesis.guidance.critic` (the segmentor)')
    parser.add_argument('checkpoint', help="the generator's weights: a file, or a release's folder")
    parser.add_argument('--out', required=True, help='file to write, ending in .safetensors; it must not exist')
    parser.add_argument('--iters', type=int, default=2000, help='training iterations; default: 2000')
    parser.add_argument('--batch-size', type=int,
                        help="real images per iteration, beside as many estimates; default: the data loader's")
    parser.add_argument('--lr', type=float, default=2e-3, help='largest learning rate; default: 0.002')
    parser.add_argument('--width', type=int, default=64, help='channels of the hidden layers; default: 64')
    parser.add_argument('--mask-weight', type=float, default=0.5,
                        help='weight of the masks beside the segmentor\'s readings; default: 0.5')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything; default: 0')
    add_device_option(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from mmsynth.engine.train_latent_critic import train_latent_critic
    from mmsynth.synthesis.build import load_config
    from mmsynth.utils.shards import default_device
    agreement = train_latent_critic(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.out,
        iters=args.iters,
        batch_size=args.batch_size,
        lr=args.lr,
        width=args.width,
        mask_weight=args.mask_weight,
        seed=args.seed,
        device=args.device or default_device())
    print(f'{agreement}\nwritten to {args.out}')


if __name__ == '__main__':
    main()
