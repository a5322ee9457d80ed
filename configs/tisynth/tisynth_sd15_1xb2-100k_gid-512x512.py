# TISynth on GID-24: the released recipe (AdamW 1e-5, batch 2); references as the manifest names them.
#   python tools/encode_prompts.py configs/tisynth/tisynth_sd15_1xb2-100k_gid-512x512.py
#   python tools/train.py configs/tisynth/tisynth_sd15_1xb2-100k_gid-512x512.py
#   python tools/synthesize.py configs/tisynth/tisynth_sd15_1xb2-100k_gid-512x512.py CHECKPOINT --out-dir DIR
_base_ = [
    '../_base_/models/tisynth_sd15.py', '../_base_/datasets/gid_512_synth.py', '../_base_/schedules/tisynth_100k.py',
    '../_base_/default_runtime.py'
]
