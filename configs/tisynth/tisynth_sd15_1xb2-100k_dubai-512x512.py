# TISynth on MBRSC Dubai: the released recipe (AdamW 1e-5, batch 2).
#   python tools/encode_prompts.py configs/tisynth/tisynth_sd15_1xb2-100k_dubai-512x512.py
#   python tools/train.py configs/tisynth/tisynth_sd15_1xb2-100k_dubai-512x512.py
#   python tools/synthesize.py configs/tisynth/tisynth_sd15_1xb2-100k_dubai-512x512.py CHECKPOINT --out-dir DIR
_base_ = [
    '../_base_/models/tisynth_sd15.py', '../_base_/datasets/dubai_512_synth.py', '../_base_/schedules/tisynth_100k.py',
    '../_base_/default_runtime.py'
]
references = 'data/dubai_mbrsc/references'  # a folder of unlabelled images of the domain to generate for
crop_size = (512, 512)
model = dict(label_codec=dict(num_classes=5))
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            # before the random crop: the cache holds one prompt per image
            dict(type='mmsynth.BuildPrompt'),
            dict(type='ResizeShortestEdge', scale=640, max_size=4096),  # the smallest image is 509 pixels high
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.ReferenceAugment'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    dataset=dict(
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PickReference', folder=references, fit='crop'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
