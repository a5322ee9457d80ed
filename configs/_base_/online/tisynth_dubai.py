_base_ = './tisynth.py'
online = dict(
    generator=dict(
        config='configs/tisynth/tisynth_sd15_dubai_512.py',
        checkpoint='work_dirs/tisynth_sd15_dubai_512/iter_100000.pth'))
