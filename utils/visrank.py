"""A door to :mod:`evaluation.ranked_images`, which draws ranked results like the original's utils/visrank.py."""

from evaluation.ranked_images import Ranking, rank_for_display, render_rankings

__all__ = ["Ranking", "rank_for_display", "render_rankings"]
