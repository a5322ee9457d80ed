"""Synthesis while a segmentor trains (DESIGN 11)."""
