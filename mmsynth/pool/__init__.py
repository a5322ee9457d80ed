"""Stored synthetic samples, in a folder of MMSegmentation's own layout.

::

    root/
      pool.json          what all samples share: settings, classes, palette
      manifest.jsonl     one line per sample; a sample counts when its line is complete
      traces.jsonl       what guidance did at each step, one line per guided sample
      img_dir/NAME.png   RGB
      ann_dir/NAME.png   8-bit class index, 255 unlabelled
      filtered/NAME.png  the label after a filter: 255 also where not trusted         once a filter ran
      weights/NAME.png   8-bit, weight of a pixel = value / 255                       with soft weights only
      img_dir/000/NAME.png, likewise ann_dir, filtered, weights                        in large pools
      shards/            lists of several writers                                      while they write
      *.index.npy        where the lines of manifest and traces begin                 in large pools
      kept.txt           NAMEs of the samples that the filter keeps, as an ann_file   once the filter has finished

A sample's two files are in place before its line is written, so a killed writer leaves at most files without a line;
the next one moves them to ``.orphans/``. The same goes for what a filter adds. Any MMSegmentation config can train from
the folder with this package not installed.
"""
from mmsynth.pool.manifest import FILTERED_FOLDER, WEIGHT_FOLDER, PoolRecord
from mmsynth.pool.records import Records, read_list, read_records
from mmsynth.pool.recovery import KEPT_FILE
from mmsynth.pool.store import Pool
from mmsynth.utils.files import file_name

__all__ = ['FILTERED_FOLDER', 'KEPT_FILE', 'Pool', 'PoolRecord', 'Records', 'WEIGHT_FOLDER', 'file_name',
           'read_list', 'read_records']
