"""Stored synthetic samples: the manifest's schema and the atomic store."""
from mmsynth.pool.manifest import FILTERED_FOLDER, WEIGHT_FOLDER, PoolRecord, parse_manifest, read_records
from mmsynth.pool.recovery import KEPT_FILE
from mmsynth.pool.store import Pool
from mmsynth.utils.files import file_name

__all__ = ['FILTERED_FOLDER', 'KEPT_FILE', 'Pool', 'PoolRecord', 'WEIGHT_FOLDER', 'file_name', 'parse_manifest',
           'read_records']
