"""What one seed of a demo measured, as a file that a later call takes up again."""
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmsynth.evaluation import Consistency
from mmsynth.utils.files import atomic_write
from projects.demo.colours import ReferenceSwap


@dataclass
class SeedResult:
    """What one seed's run measured.

    Attributes:
        seed: The seed.
        miou: Row → mIoU on held-out real images, in percent.
        reference_miou: 'critic' and 'judge' → their mIoU on held-out real images, in percent.
        consistency: Row with synthetic images → reader ('judge', 'critic') → how it reads them.
        pools: Row with synthetic images → the pool's folder.
        swap: What the target's references changed; None where there is no target domain.
        seconds: Stage → duration.
    """

    seed: int
    miou: dict[str, float] = field(default_factory=dict)
    reference_miou: dict[str, float] = field(default_factory=dict)
    consistency: dict[str, dict[str, Consistency]] = field(default_factory=dict)
    pools: dict[str, Path] = field(default_factory=dict)
    swap: ReferenceSwap | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        """Store the result with the settings that it was measured under."""
        values = asdict(self) | dict(pools={row: str(folder) for row, folder in self.pools.items()})
        atomic_write(path, json.dumps(dict(settings=settings, result=values), indent=1).encode())

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> 'SeedResult | None':
        """A stored result; None if there is none, or it was measured under other settings."""
        if not path.is_file():
            return None
        stored = json.loads(path.read_text())
        if stored['settings'] != settings:
            return None
        result = cls(**stored['result'])
        result.pools = {row: Path(folder) for row, folder in result.pools.items()}
        result.consistency = {row: {reader: Consistency(**reading) for reader, reading in readings.items()}
                              for row, readings in result.consistency.items()}
        if result.swap is not None:
            swap = dict(stored['result']['swap'])
            result.swap = ReferenceSwap(tuple(swap['first']), tuple(swap['second']), swap['moved'])
        return result
