# The segmentor that guides synthesis on LoveDA, and that the synthetic images are for.
_base_ = [
    '../_base_/models/deeplabv3plus_r50.py', '../_base_/datasets/loveda_512_seg.py',
    '../_base_/schedules/segmentor_40k.py', '../_base_/default_runtime.py'
]
model = dict(decode_head=dict(num_classes=7))
