# FUSU: 512-pixel tiles, JSON lines {"source": label, "target": image} in train.jsonl and val.jsonl.
data_root = 'data/fusu'
crop_size = (512, 512)
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.FUSUDataset',
        data_root=data_root,
        ann_file='train.jsonl',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=4,
    num_per_mask=3,  # the paper's ratio of synthetic to real
    dataset=dict(
        type='mmsynth.FUSUDataset',
        data_root=data_root,
        ann_file='train.jsonl',
        masks_only=True,
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
