# Critics that look harder, or at latents only, compared by worth and by what judges read: docs/en/worth.md.
_base_ = './worth_generators.py'
towards_mask = dict(mask_guidance_scale=1.5)
few_steps = dict(towards_mask, num_steps=7, sampler=dict(type='DPMSolverMultistepScheduler'))
worth = dict(
    critics=dict(
        several=dict(critics=('fcn', 'unet'), looks=4),
        crossed=dict(config='projects/demo/configs/critic.py', cross_fitted=True)),
    pools=dict(
        no_mask_guidance=dict(),
        several_mild=dict(sampling=towards_mask, critic='several', guidance=dict(type='mmsynth.CRFM', step_size=0.15)),
        several=dict(sampling=towards_mask, critic='several', guidance=dict(type='mmsynth.CRFM', step_size=0.3)),
        several_strong=dict(sampling=towards_mask, critic='several', guidance=dict(type='mmsynth.CRFM', step_size=0.5)),
        crossed=dict(sampling=towards_mask, critic='crossed', guidance=dict(type='mmsynth.CRFM', step_size=0.3)),
        every_step=dict(sampling=towards_mask, guidance=dict(type='mmsynth.CRFM')),
        kept=dict(sampling=towards_mask, guidance=dict(type='mmsynth.CRFM', keep_class_means=True)),
        kept_strong=dict(
            sampling=towards_mask,
            critic='several',
            guidance=dict(type='mmsynth.CRFM', step_size=0.5, keep_class_means=True)),
        every_step_latent=dict(sampling=towards_mask, guidance=dict(type='mmsynth.CRFM'), latent_critic=True),
        fast_latent=dict(
            sampling=few_steps, guidance=dict(type='mmsynth.CRFM', steps=1, step_size=0.3), latent_critic=True),
        best_of_4=dict(sampling=towards_mask, guidance=dict(type='mmsynth.BestOfN', num_candidates=4))),
    rows=dict(
        _delete_=True,
        real=dict(title='real only', iterations=2),
        no_mask_guidance=dict(
            title='+ unguided, not towards the mask either', pool='no_mask_guidance', iterations=2),
        plain=dict(title='+ unguided', pool='plain', iterations=2),
        several_mild=dict(title='+ FCN and U-Net, 4 looks, 0.15', pool='several_mild', iterations=2),
        several=dict(title='+ FCN and U-Net, 4 looks, 0.3', pool='several', iterations=2),
        several_strong=dict(title='+ FCN and U-Net, 4 looks, 0.5', pool='several_strong', iterations=2),
        crossed=dict(title='+ FCN of the other places, 0.3', pool='crossed', iterations=2),
        every_step=dict(title='+ CRFM 0.1, every step', pool='every_step', iterations=2),
        kept=dict(title='+ CRFM 0.1, every step, class means kept', pool='kept', iterations=2),
        kept_strong=dict(
            title='+ FCN and U-Net, 4 looks, 0.5, class means kept', pool='kept_strong', iterations=2),
        every_step_latent=dict(
            title='+ CRFM 0.1, every step, latent critic', pool='every_step_latent', iterations=2),
        released=dict(title='+ CRFM 0.1, first 4 of 23 steps', pool='released', iterations=2),
        fast_latent=dict(title='+ fast preset, latent critic', pool='fast_latent', iterations=2),
        best_of_4=dict(title='+ best of 4 by the FCN', pool='best_of_4', iterations=2)))
