# The table's first row: real images only.
_base_ = './critic.py'
