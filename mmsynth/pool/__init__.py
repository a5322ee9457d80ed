"""Stored synthetic samples: the manifest's schema and the atomic store."""
from mmsynth.pool.manifest import FILTERED_FOLDER, WEIGHT_FOLDER, PoolRecord
from mmsynth.pool.records import Records
from mmsynth.pool.recovery import KEPT_FILE
from mmsynth.pool.store import Pool, read_records
from mmsynth.utils.files import file_name

__all__ = ['FILTERED_FOLDER', 'KEPT_FILE', 'Pool', 'PoolRecord', 'Records', 'WEIGHT_FOLDER', 'file_name',
           'read_records']
