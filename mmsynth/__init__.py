"""mmsynth: training-data synthesis for MMSegmentation."""
__version__ = '0.1.0'
