# The demo's judge: another architecture, trained on more data than the critic; it never guides.
_base_ = [
    '_base_/models/unet_tiny.py', '_base_/datasets/landcover_seg.py', '_base_/schedules/demo.py',
    '../../../configs/_base_/default_runtime.py'
]
train_dataloader = dict(dataset=dict(data_prefix=dict(img_path='img_dir/judge', seg_map_path='ann_dir/judge')))
randomness = dict(seed=1000)
