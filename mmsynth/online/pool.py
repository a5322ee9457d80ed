"""The pool of a running training, for its one writer: rounds are published, the oldest samples retire.

What is on the disk agrees at any moment: a round's line follows its samples, a sample's record its files. Samples that
are retired keep their files until no checkpoint that a resume may start from draws them.
"""
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmsynth.online.sample import Sample
from mmsynth.pool import Pool
from mmsynth.pool.rounds import ROUNDS_FILE, Round, append_round, live_ids, published_ids, read_rounds, write_rounds


class GrowingPool:
    """Write an online pool.

    Args:
        root: The pool's folder; new, empty, or an online pool of the same settings.
        settings, classes, palette: See :meth:`Pool.create`.
        max_samples: Most samples that are live at once; the oldest retire.

    Attributes:
        pool: The pool, open for writing.
        rounds: Its rounds.

    Raises:
        ValueError: If ``root`` holds something else, or a pool made with other settings.
        RuntimeError: If another process is writing it.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, Any], classes: Sequence[str],
                 palette: Sequence[Sequence[int]], max_samples: int) -> None:
        self.pool = Pool.create(root, settings, classes, palette)
        self.max_samples = max_samples
        self.rounds: list[Round] = []
        try:
            if not (self.pool.root / ROUNDS_FILE).is_file():
                write_rounds(self.pool.root, [])  # before any sample: readers must not take it for a finished pool
            self.rounds = read_rounds(self.pool.root)
        except BaseException:
            self.pool.close()
            raise

    def rewind(self, published: int) -> int:
        """Take back all but the first rounds as if the others had never been, and return how many samples were removed.

        Raises:
            ValueError: If there are fewer rounds.
        """
        if published > len(self.rounds):
            raise ValueError(f'{self.pool.root}: the checkpoint was saved with {published} rounds in the pool, it has '
                             f'{len(self.rounds)}. Resume with the pool that belongs to the checkpoint, or start anew '
                             'with `load_from` in the place of `resume`.')
        write_rounds(self.pool.root, self.rounds[:published])  # which also cuts off what a killed run left unfinished
        self.rounds = self.rounds[:published]
        return self._remove_unpublished()

    def missing(self, iteration: int) -> list[str]:
        """Return the ids that will be drawn from an iteration on and are not there."""
        drawn = dict.fromkeys(live_ids(self.rounds, iteration))
        for round in self.rounds:
            if round.usable_from > iteration:
                drawn |= dict.fromkeys(round.ids)
        return [id for id in drawn if not self.pool.has(id)]

    def live(self) -> list[str]:
        """Return the ids that are live once all rounds count, oldest first."""
        return live_ids(self.rounds)

    def publish(self, number: int, usable_from: int, samples: Sequence[Sample], dropped: int) -> Round:
        """Store samples and make them a round.

        Raises:
            OSError: If they cannot be written, such as on a full disk; the pool is as before then.
            ValueError: If a sample breaks a rule of the pool; likewise.
        """
        live = self.live()
        retired = live[:max(0, len(live) + len(samples) - self.max_samples)]
        round = Round(number, usable_from, tuple(sample.id for sample in samples), tuple(retired), dropped)
        try:
            for sample in samples:
                sample.add_to(self.pool)
            append_round(self.pool.root, round)
        except BaseException:
            with suppress(OSError):  # a full disk may refuse this too; the next rewind removes them
                self._remove_unpublished()
            raise
        self.rounds.append(round)
        return round

    def sweep(self, iteration: int) -> int:
        """Delete the files of samples that retired and are not drawn from an iteration on; return how many."""
        gone = [id for round in self.rounds if round.usable_from <= iteration for id in round.retired
                if self.pool.has(id)]
        if gone:
            self.pool.remove(gone)
        return len(gone)

    def close(self) -> None:
        """Free the folder for other writers."""
        self.pool.close()

    def _remove_unpublished(self) -> int:
        """Remove samples that belong to no round."""
        known = set(published_ids(self.rounds))
        unpublished = [record.id for record in self.pool.records if record.id not in known]
        if unpublished:
            self.pool.remove(unpublished)
        return len(unpublished)
