"""The words that ``experiments.py`` and ``note.py`` speak: experiment, publish, figure, table, claim.

Inside a build they record what a page will show. Anywhere else (a notebook, a shell) they show it at once.
"""

from rundoku.show.experiments import Result, experiment
from rundoku.show.figures import figure, heatmap, tiles
from rundoku.show.record import claim, publish, table

__all__ = ["Result", "claim", "experiment", "figure", "heatmap", "publish", "table", "tiles"]
