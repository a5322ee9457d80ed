# MBRSC Dubai: images/, masks/ (8-bit class index), and JSON lines in train.jsonl (tiles 1, 3-8) and val.jsonl (tile 2).
data_root = 'data/dubai_mbrsc'
crop_size = (512, 512)
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='mmsynth.SeededInfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmsynth.DubaiDataset',
        data_root=data_root,
        ann_file='train.jsonl',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmsynth.LoadSegMap'),
            # before the random crop: the cache holds one prompt per image
            dict(type='mmsynth.BuildPrompt'),
            dict(type='ResizeShortestEdge', scale=640, max_size=4096),  # the smallest image is 509 pixels high
            dict(type='RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
synthesis = dict(
    batch_size=4,
    num_per_mask=3,  # the paper's ratio of synthetic to real
    dataset=dict(
        type='mmsynth.DubaiDataset',
        data_root=data_root,
        ann_file='train.jsonl',
        masks_only=True,
        pipeline=[
            dict(type='mmsynth.LoadSegMap'),
            dict(type='mmsynth.CropSegMap', crop_size=crop_size),
            dict(type='mmsynth.BuildPrompt'),
            dict(type='mmsynth.PackSynthInputs'),
        ]))
