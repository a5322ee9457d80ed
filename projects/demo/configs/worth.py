# What is compared by tools/analysis_tools/worth.py, with the demo's networks.
strong = [
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomRotate', prob=0.5, degree=30, seg_pad_val=255),
    dict(type='RandomCutOut', prob=0.5, n_holes=2, cutout_ratio=(0.15, 0.15)),
]
worth = dict(
    generator='todsynth_long.py',
    critic='critic.py',
    segmentors=dict(fcn='critic.py', unet='segmentor_unet.py'),
    pools=dict(
        plain=dict(),
        crfm=dict(guidance=dict(type='mmsynth.CRFM')),
        crfm_strong=dict(guidance=dict(type='mmsynth.CRFM', step_size=0.3)),
        best_of_4=dict(guidance=dict(type='mmsynth.BestOfN', num_candidates=4)),
        filtered=dict(filter=dict())),
    rows=dict(
        real=dict(title='real only'),
        twice=dict(title='real only, twice the iterations', iterations=2),
        strong=dict(title='real only, strong augmentation', transforms=strong),
        plain=dict(title='+ plain', pool='plain'),
        plain_quarter=dict(title='+ plain, a quarter of each batch', pool='plain', ratio=0.25),
        crfm=dict(title='+ CRFM 0.1', pool='crfm'),
        crfm_strong=dict(title='+ CRFM 0.3', pool='crfm_strong'),
        best_of_4=dict(title='+ best of 4', pool='best_of_4'),
        filtered=dict(title='+ plain, filtered', pool='filtered')))
