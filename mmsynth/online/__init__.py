"""Synthesis while a segmentor trains: settings of a round, its synthesis in process or in a worker process, its pool."""
