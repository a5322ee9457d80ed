"""Stored synthetic samples: the manifest's schema and the atomic store."""
from mmsynth.pool.files import file_name
from mmsynth.pool.manifest import PoolRecord, parse_manifest
from mmsynth.pool.store import Pool, read_records

__all__ = ['Pool', 'PoolRecord', 'file_name', 'parse_manifest', 'read_records']
