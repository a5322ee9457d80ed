# The judge's architecture trained on what the critic is trained on: a second segmentor to measure worth with.
_base_ = [
    '_base_/models/unet_tiny.py', '_base_/datasets/landcover_seg.py', '_base_/schedules/demo.py',
    '../../../configs/_base_/default_runtime.py'
]
