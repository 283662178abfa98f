"""How much of a run's time looks may take."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from lit_viz.errors import UsageError


class Budget:
    """A share of the time of a run, for one visualization or for several together.

    A look is granted if with it all looks take no more than the share of the time since the run began, looks included:
    `spent + cost <= share * (elapsed + cost)`, where the cost is what the visualization's last look came to. Its first
    look is always granted, since nothing is known of it; what it takes too much is made up for by later ones.

    Several that share an account have an equal part in it each. What one of them leaves is there for the others, as
    long as none of them waits: else an expensive look would never be granted beside cheap ones.

    Args:
        share: Above 0, up to 1; 0.05 for 5 % of the time.
        clock: Tells the time in seconds.

    Attributes:
        spent: Seconds that each visualization took since the run began, by name.

    Raises:
        UsageError: For a share that is none.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise UsageError(f"budget is a share of the time, above 0 and at most 1 (0.05 for 5 %); got {share!r}.")
        self.share, self.clock = float(share), clock
        self.spent: dict[str, float] = {}
        self._run: weakref.ref[object] | None = None
        self._began = clock()
        self._before: dict[str, float] = {}  # what was spent before the last look
        self._refused: set[str] = set()  # at the last turn

    def open(self, name: str, run: object) -> None:
        """Opens the account of a visualization, at the beginning of a run.

        Args:
            name: Of the visualization.
            run: Stands for the run. What was spent in another one is forgotten, and likewise where an account that is
                open already is opened again.
        """
        if self._run is None or self._run() is not run:
            self.spent.clear()
            self._run = weakref.ref(run)
            self._begin()
        elif name in self.spent:
            self.spent = dict.fromkeys(self.spent, 0.0)
            self._begin()
        self.spent[name] = 0.0

    def _begin(self) -> None:
        self._before.clear()
        self._refused.clear()
        self._began = self.clock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}  # in another process it is another run

    def spend(self, name: str, seconds: float) -> None:
        """Books what a visualization took."""
        self.spent[name] = self.spent.get(name, 0.0) + seconds

    def cost(self, name: str) -> float:
        """Seconds spent since a visualization's last look was granted, that look included."""
        return self.spent[name] - self._before[name]

    def allows(self, name: str) -> bool:
        """Whether a look is within the budget now."""
        if name not in self._before:
            return True
        cost = self.cost(name)
        allowed = self.share * (self.clock() - self._began + cost)
        if sum(self.spent.values()) + cost > allowed:
            return False
        others_wait = bool(self._refused - {name})
        return not others_wait or self.spent[name] + cost <= allowed / len(self.spent)

    def settle(self, name: str, granted: bool) -> None:
        """Notes whether a visualization had its turn, as all processes of the run agreed."""
        if granted:
            self._before[name] = self.spent.setdefault(name, 0.0)
            self._refused.discard(name)
        else:
            self._refused.add(name)
