"""Synthesis while a segmentor trains: what a round generates, in process or in a worker process, and its pool."""
