_base_ = './todsynth.py'
online = dict(
    generator=dict(
        config='configs/todsynth/todsynth_sd35m_dubai_512.py',
        checkpoint='work_dirs/todsynth_sd35m_dubai_512/iter_40000.pth'))
