# The demo's critic: trained on the few labelled images.
_base_ = [
    '_base_/models/fcn_r18_tiny.py', '_base_/datasets/landcover_seg.py', '_base_/schedules/demo.py',
    '../../../configs/_base_/default_runtime.py'
]
