# ZeRO stage 3: every card holds a share of the weights, too. The rest is that of stage 2.
_base_ = './deepspeed_zero2.py'
strategy = dict(zero_optimization=dict(stage=3))
