# GID-24: 512-pixel tiles. JSON lines {"source": label, "target": image, "prompt": text} in train.jsonl, and
# {"source": label, "prompt": text, "ref_image": image of the style wanted} in synthesis.jsonl, as released.
data_root = 'data/gid'
crop_size = (512, 512)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.GIDDataset',
        data_root=data_root,
        ann_file='train.jsonl',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.BuildPrompt', overwrite=False),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.ReferenceAugment'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=4,
    dataset=dict(
        type='mmsynth.GIDDataset',
        data_root=data_root,
        ann_file='synthesis.jsonl',
        masks_only=True,
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt', overwrite=False),
            dict(type='mmsynth.LoadReference'),
            dict(type='mmsynth.FitReference'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
