# What is compared by tools/analysis_tools/worth.py, with the demo's networks: docs/en/worth.md. A study of your own
# inherits this file and changes `worth`; a row that is added later costs only itself.
strong = [
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomRotate', prob=0.5, degree=30, seg_pad_val=255),
    dict(type='RandomCutOut', prob=0.5, n_holes=2, cutout_ratio=(0.15, 0.15)),
]
crfm = dict(type='mmsynth.CRFM')
worth = dict(
    shares=(1.0, 0.5, 0.25, 0.125),
    segmentor_iters=1600,  # from there on the mIoU of real images alone is flat
    generators=dict(
        plain='projects/demo/configs/todsynth_long.py',
        dropout=dict(config='projects/demo/configs/todsynth_long.py', overrides={'model.mask_dropout': 0.15}),
        unlabelled=dict(config='projects/demo/configs/todsynth_long.py', unlabelled=0.5)),
    critics=dict(
        fcn='projects/demo/configs/critic.py',
        unet='projects/demo/configs/segmentor_unet.py',
        both=dict(critics=('fcn', 'unet')),
        crossed=dict(config='projects/demo/configs/critic.py', cross_fitted=True)),
    segmentors=dict(fcn='projects/demo/configs/critic.py', unet='projects/demo/configs/segmentor_unet.py'),
    judges=dict(fcn='projects/demo/configs/critic.py', unet='projects/demo/configs/judge.py'),
    pools=dict(
        plain=dict(),
        plain_4=dict(num_per_mask=4),
        unlabelled=dict(generator='unlabelled', sampling=dict(mask_guidance_scale=1.5)),
        crfm=dict(guidance=crfm),
        crfm_strong=dict(guidance=dict(type='mmsynth.CRFM', step_size=0.3)),
        crfm_both=dict(guidance=crfm, critic='both'),
        crfm_crossed=dict(guidance=crfm, critic='crossed'),
        best_of_4=dict(guidance=dict(type='mmsynth.BestOfN', num_candidates=4)),
        towards_mask=dict(generator='dropout', sampling=dict(mask_guidance_scale=1.5)),
        hard=dict(filter=dict(segmentor='unet')),
        soft=dict(filter=dict(segmentor='unet', mode='soft')),
        vote=dict(num_per_mask=4, filter=dict(segmentor='unet', sibling_vote='median')),
        turned=dict(masks=dict(type='mmsynth.TransformedMasks', max_angle=45, scale_range=(0.7, 1.4))),
        uncertain=dict(
            masks=dict(type='mmsynth.UncertainMasks', critic='fcn', rule='proportional', share=1.0))),
    rows=dict(
        real=dict(title='real only'),
        twice=dict(title='real only, twice the iterations', iterations=2),
        slow=dict(title='real only, a quarter of the rate', learning_rate=0.25),
        strong=dict(title='real only, strong augmentation', transforms=strong),
        self_training=dict(title='self-training', self_training=True),
        plain=dict(title='+ plain', pool='plain'),
        plain_quarter=dict(title='+ plain, a quarter of each batch', pool='plain', ratio=0.25),
        plain_strong=dict(title='+ plain, strong augmentation', pool='plain', transforms=strong),
        plain_4=dict(title='+ plain, 4 per mask', pool='plain_4'),
        unlabelled=dict(title='+ generator of unlabelled images too', pool='unlabelled'),
        crfm=dict(title='+ CRFM 0.1', pool='crfm'),
        crfm_strong=dict(title='+ CRFM 0.3', pool='crfm_strong'),
        crfm_both=dict(title='+ CRFM 0.1, FCN and U-Net', pool='crfm_both'),
        crfm_crossed=dict(title='+ CRFM 0.1, cross-fitted', pool='crfm_crossed'),
        best_of_4=dict(title='+ best of 4', pool='best_of_4'),
        towards_mask=dict(title='+ towards the mask 1.5', pool='towards_mask'),
        hard=dict(title='+ plain, hard filter', pool='hard'),
        soft=dict(title='+ plain, soft filter', pool='soft'),
        vote=dict(title='+ plain, 4 per mask, sibling vote', pool='vote'),
        turned=dict(title='+ plain, masks turned and zoomed', pool='turned'),
        uncertain=dict(title='+ plain, uncertain masks', pool='uncertain'),
        online=dict(
            title='+ CRFM online',
            pool='crfm',
            online=dict(begin=100, interval=100, num_per_round=32, max_samples=128, batch_size=32))))
