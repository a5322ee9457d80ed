# TISynth on LoveDA, from rural to urban: images for rural masks in the style of unlabelled urban images.
#   python tools/encode_prompts.py configs/tisynth/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512.py
#   python tools/train.py configs/tisynth/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512.py
#   python tools/synthesize.py configs/tisynth/tisynth_sd15_1xb2-100k_loveda-rural2urban-512x512.py CHECKPOINT --out-dir DIR
_base_ = [
    '../_base_/models/tisynth_sd15.py', '../_base_/datasets/loveda_rural2urban_512_synth.py',
    '../_base_/schedules/tisynth_100k.py', '../_base_/default_runtime.py'
]
model = dict(label_codec=dict(num_classes=7))
