"""Pictures for people: grids, plots and the report page."""
from mmsynth.visualization.grid import colorize, draw_grid, save_png
from mmsynth.visualization.plots import plot_class_balance, plot_guidance, plot_results
from mmsynth.visualization.pool_report import count_classes, pool_report
from mmsynth.visualization.report import Report

__all__ = [
    'Report', 'colorize', 'count_classes', 'draw_grid', 'plot_class_balance', 'plot_guidance', 'plot_results',
    'pool_report', 'save_png'
]
