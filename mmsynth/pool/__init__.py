"""Stored synthetic samples: the manifest's schema and the atomic store."""
from mmsynth.pool.manifest import PoolRecord, parse_manifest
from mmsynth.pool.store import Pool, read_records
from mmsynth.utils.files import file_name

__all__ = ['Pool', 'PoolRecord', 'file_name', 'parse_manifest', 'read_records']
