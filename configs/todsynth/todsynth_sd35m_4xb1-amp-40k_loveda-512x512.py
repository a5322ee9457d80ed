# TODSynth on LoveDA: the released recipe (20k steps of AdamW 1e-4 in bf16).
#   python tools/encode_prompts.py configs/todsynth/todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py
#   python tools/train.py configs/todsynth/todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py
#   python tools/synthesize.py configs/todsynth/todsynth_sd35m_4xb1-amp-40k_loveda-512x512.py CHECKPOINT --out-dir DIR
_base_ = [
    '../_base_/models/todsynth_sd35m.py', '../_base_/datasets/loveda_512_synth.py',
    '../_base_/schedules/todsynth_20k.py', '../_base_/strategies/ddp.py', '../_base_/default_runtime.py'
]
model = dict(label_codec=dict(num_classes=7))
synthesis = dict(
    guidance=dict(
        type='mmsynth.CRFM',
        critic=dict(
            type='mmsynth.SegmentorCritic',
            config='configs/segmentation/deeplabv3plus_r50_1xb8-40k_loveda-512x512.py',
            checkpoint='work_dirs/deeplabv3plus_r50_1xb8-40k_loveda-512x512/iter_40000.pth')))
