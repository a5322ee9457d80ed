# TODSynth, guided or not, in full and in few steps, and TISynth, compared by worth: docs/en/worth.md has the tables.
_base_ = './worth.py'
towards_mask = dict(mask_guidance_scale=1.5)
few_steps = dict(towards_mask, num_steps=8, sampler=dict(type='DPMSolverMultistepScheduler'))
worth = dict(
    shares=(1.0, ),
    segmentor_iters=800,  # of critics; a judge is trained twice as long, and so is every row
    generators=dict(
        _delete_=True,
        null=dict(config='projects/demo/configs/todsynth_long.py', overrides={'model.mask_dropout': 0.15}),
        tisynth=dict(
            config='projects/demo/configs/tisynth_long.py',
            overrides={  # looks of the new place
                'train_dataloader.dataset.pipeline.6.folder': 'work_dirs/demo/data/img_dir/test',
                'synthesis.dataset.pipeline.2.folder': 'work_dirs/demo/data/img_dir/test',
                'model.mask_dropout': 0.1,
                'model.reference_dropout': 0.1,
            })),
    critics=dict(
        _delete_=True,
        fcn='projects/demo/configs/critic.py',
        unet='projects/demo/configs/segmentor_unet.py',
        reducible=dict(type='mmsynth.ReducibleLossCritic', critics=('unet', 'fcn')),  # teacher, learner
        fcn_slow=dict(config='projects/demo/configs/critic.py', learning_rate=0.25),
        unet_slow=dict(config='projects/demo/configs/segmentor_unet.py', learning_rate=0.25),
        reducible_slow=dict(type='mmsynth.ReducibleLossCritic', critics=('unet_slow', 'fcn_slow'))),
    segmentors=dict(_delete_=True, fcn='projects/demo/configs/critic.py'),
    pools=dict(
        _delete_=True,
        plain=dict(sampling=towards_mask),
        reducible=dict(
            sampling=towards_mask,
            critic='reducible',
            guidance=dict(type='mmsynth.CRFM', objective='mask', step_size=0.3)),
        reducible_slow=dict(
            sampling=towards_mask,
            critic='reducible_slow',
            guidance=dict(type='mmsynth.CRFM', objective='mask', step_size=0.3)),
        slow_critic=dict(sampling=towards_mask, critic='fcn_slow', guidance=dict(type='mmsynth.CRFM')),
        released=dict(sampling=dict(towards_mask, num_steps=23), guidance=dict(type='mmsynth.CRFM', steps=4)),
        fast=dict(sampling=few_steps, guidance=dict(type='mmsynth.CRFM', steps=1, step_size=0.3)),
        fast_plain=dict(sampling=few_steps),
        tisynth=dict(generator='tisynth', sampling=towards_mask),
        tisynth_dial=dict(generator='tisynth', sampling=dict(towards_mask, reference_guidance_scale=2.5)),
        tisynth_50=dict(generator='tisynth', sampling=dict(towards_mask, num_steps=50)),
        tisynth_fast=dict(
            generator='tisynth',
            sampling=dict(
                towards_mask,
                num_steps=16,
                sampler=dict(type='DPMSolverMultistepScheduler', use_karras_sigmas=True)))),
    rows=dict(
        _delete_=True,
        real=dict(title='real only', iterations=2),
        slow=dict(title='real only, a quarter of the rate', iterations=2, learning_rate=0.25),
        strong=dict(title='real only, strong augmentation', iterations=2, transforms={{_base_.strong}}),
        plain=dict(title='+ unguided', pool='plain', iterations=2),
        reducible=dict(title='+ reducible loss 0.3', pool='reducible', iterations=2),
        reducible_slow=dict(
            title='+ reducible loss 0.3, critics of a quarter of the rate', pool='reducible_slow', iterations=2),
        slow_critic=dict(
            title='+ CRFM 0.1, every step, critic of a quarter of the rate', pool='slow_critic', iterations=2),
        reducible_first=dict(
            title='+ reducible loss 0.3, then real only', pool='reducible', iterations=2, mixed=0.5),
        released=dict(title='+ CRFM 0.1, first 4 of 23 steps', pool='released', iterations=2),
        fast=dict(title='+ CRFM 0.3, first of 8 steps of DPM-Solver++', pool='fast', iterations=2),
        fast_plain=dict(title='+ unguided, 8 steps of DPM-Solver++', pool='fast_plain', iterations=2),
        tisynth=dict(title='+ TISynth, references of the new place', pool='tisynth', iterations=2),
        tisynth_dial=dict(title='+ TISynth, reference guidance 2.5', pool='tisynth_dial', iterations=2),
        tisynth_50=dict(title='+ TISynth, 50 steps', pool='tisynth_50', iterations=2),
        tisynth_fast=dict(title='+ TISynth, 16 steps, Karras sigmas', pool='tisynth_fast', iterations=2)))
