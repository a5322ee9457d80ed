# SegFormer-B2 on MBRSC Dubai, on real images; the online configs inherit it.
_base_ = [
    '../_base_/models/segformer_b2.py', '../_base_/datasets/dubai_512_seg.py',
    '../_base_/schedules/segmentor_40k_adamw.py', '../_base_/default_runtime.py'
]
model = dict(decode_head=dict(num_classes=5))
