"""Write a generator's checkpoint in another layout."""
import argparse
from collections.abc import Sequence

from tool_options import add_config_options, find_package


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + " It reads mmengine's .pth, .safetensors, mmagic's of a ControlNet, or a release's file "
        "(TISynth: LDM's .ckpt) or folder, and overwrites nothing.",
        epilog='Examples: python tools/convert_checkpoint.py CONFIG work_dirs/NAME/iter_40000.pth --out '
        'generator.safetensors --merge-lora. With --to diffusers --out FOLDER the trunk serves every config as '
        'model.network.pretrained=FOLDER, and FOLDER/control is a checkpoint on top of it. With --to pipeline --out '
        'FOLDER, mmsynth.pipelines.TODSynthPipeline.from_pretrained(FOLDER) or TISynthPipeline generates.')
    parser.add_argument('config', help='the config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help="the generator's weights: a file, or a release's folder")
    parser.add_argument(
        '--out', required=True, help='new file, NAME.safetensors or NAME.pth, or new folder for diffusers and pipeline')
    parser.add_argument('--merge-lora', action='store_true', help='add the low-rank updates to the weights')
    parser.add_argument(
        '--to',
        choices=['mmsynth', 'diffusers', 'pipeline'],
        default='mmsynth',
        help='mmsynth: one file with the names of this package (default); diffusers, of a TODSynth: a folder with '
        'transformer/, control/ (what the network adds for masks), scheduler/ and, where there is one, vae/, of a '
        "ControlNet diffusers' own pipeline; pipeline: a folder that mmsynth.pipelines loads whole")
    add_config_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.synthesis.build import load_config
    cfg = load_config(args.config, args.cfg_options)
    if args.to == 'pipeline':
        from mmsynth.pipelines.convert import convert_to_pipeline
        print(convert_to_pipeline(cfg, args.checkpoint, args.out, merge_lora=args.merge_lora))
        return
    from mmsynth.models.convert import convert_checkpoint
    print(convert_checkpoint(cfg, args.checkpoint, args.out, to=args.to, merge_lora=args.merge_lora))


if __name__ == '__main__':
    main()
