"""The load-shedding ladder: which comforts go when the board is hot or short of memory, and when they come back. Pure.

::

    normal → no shadow → no capture → fewer threads → shed load

Each signal (temperature, throttling, memory pressure, available memory) climbs and descends for itself: up as soon as it has
stood at a threshold for its ``rise_s``, by as many rungs as the threshold says; down by one rung, after it has stood at or below
the lower threshold of that rung for its ``fall_s``. Between the two nothing changes. The board is on the highest rung of any.
Reading the signals is left to :mod:`edgeops_runtime.host`, acting to :mod:`edgeops_runtime.relief`.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import msgspec


class Rung(IntEnum):
    """What is given up; each includes those before it."""

    NORMAL = 0
    NO_SHADOW = 1
    """A trial waits; one that has begun is put back."""
    NO_CAPTURE = 2
    """Samples are not drawn."""
    FEWER_THREADS = 3
    """Workers keep to half of the cores."""
    SHED_LOAD = 4
    """Some requests are answered with 503."""

    @property
    def words(self) -> str:
        """As messages have it."""
        return self.name.lower().replace("_", "-")


class Signal(NamedTuple):
    """How one signal moves; higher is worse.

    Attributes:
        enter: From which value on a rung is reached, for each rung above normal; rising. Infinite: never by this signal.
        leave: From which value on, downward, a rung is left; below ``enter``.
        rise_s: How long a threshold must be met before it counts.
        fall_s: How long a rung must be over before it is left.
        unit: For people.
        sign: -1 where the value is a share that falls when things get worse, and was negated for that.
    """

    enter: tuple[float, float, float, float]
    leave: tuple[float, float, float, float]
    rise_s: float
    fall_s: float
    unit: str
    sign: int = 1

    def reached(self, value: float) -> Rung:
        """The highest rung whose threshold is met."""
        return Rung(sum(value >= threshold for threshold in self.enter))

    def in_words(self, value: float) -> str:
        """A value for people."""
        return f"{self.sign * value:.3g}{self.unit}"


_NEVER = float("inf")
HOT_C = 85.0
"""Where the firmware of most boards throttles hard."""


def signals(hot_c: float = HOT_C) -> dict[str, Signal]:
    """The signals with their thresholds.

    Args:
        hot_c: Temperature that the board must not reach, in degrees Celsius; the rungs begin 15, 10, 5 and 1 below.
    """
    return {
        "temperature": Signal(
            enter=(hot_c - 15, hot_c - 10, hot_c - 5, hot_c - 1),
            leave=(hot_c - 20, hot_c - 15, hot_c - 10, hot_c - 6),
            rise_s=10,
            fall_s=60,
            unit=" °C",
        ),
        # 1: under-voltage or capped; 2: the soft temperature limit; 3: throttled.
        "throttling": Signal(enter=(1, 2, 3, _NEVER), leave=(0, 1, 2, 3), rise_s=5, fall_s=60, unit=""),
        "memory pressure": Signal(enter=(10, 20, 35, 60), leave=(5, 10, 20, 35), rise_s=10, fall_s=60, unit=" %"),
        "available memory": Signal(
            enter=(-15, -10, -7, -4), leave=(-20, -15, -10, -7), rise_s=5, fall_s=60, unit=" %", sign=-1
        ),
    }


class Standing(msgspec.Struct, frozen=True):
    """Where one signal stands.

    Attributes:
        rung: Of this signal.
        above: For each rung above normal: since when its upper threshold is met, in seconds; ``None``: it is not.
        below_since: Since when the lower threshold of ``rung`` is met; ``None``: it is not.
        value: The last reading.
    """

    rung: Rung = Rung.NORMAL
    above: tuple[float | None, ...] = (None, None, None, None)
    below_since: float | None = None
    value: float | None = None


def advance(standing: Standing, signal: Signal, value: float | None, now: float) -> Standing:
    """Where a signal stands after one more reading.

    Args:
        standing: Before.
        signal: How it moves.
        value: The reading; ``None``, one that cannot be had, counts as calm, so that a lost sensor leads down, slowly.
        now: Monotonic time in seconds.

    >>> heat = signals(85.0)["temperature"]
    >>> hot = Standing()
    >>> for second, value in enumerate([76.0] * 3):
    ...     hot = advance(hot, heat, value, second * 5.0)
    >>> hot.rung.words                       # 75 °C for ten seconds: two rungs at once
    'no-capture'
    >>> advance(hot, heat, 72.0, 1000.0).rung.words  # between 70 and 75: stays, however long
    'no-capture'
    >>> cool = advance(hot, heat, 69.0, 1000.0)
    >>> cool.rung.words, advance(cool, heat, 20.0, 1060.0).rung.words   # a minute later, one rung, however cold it is
    ('no-capture', 'no-shadow')
    """
    reached = signal.reached(value) if value is not None else Rung.NORMAL
    above = tuple(
        (since if since is not None else now) if rung <= reached else None
        for rung, since in enumerate(standing.above, start=1)
    )
    risen = max(
        (Rung(rung) for rung, since in enumerate(above, start=1) if since is not None and now - since >= signal.rise_s),
        default=Rung.NORMAL,
    )
    if risen > standing.rung:
        return Standing(rung=risen, above=above, below_since=None, value=value)
    is_below = standing.rung > Rung.NORMAL and (value is None or value <= signal.leave[standing.rung - 1])
    if not is_below:
        return Standing(rung=standing.rung, above=above, below_since=None, value=value)
    since = standing.below_since if standing.below_since is not None else now
    if now - since >= signal.fall_s:
        # The next rung down begins to count anew: one rung a dwell.
        return Standing(rung=Rung(standing.rung - 1), above=above, below_since=None, value=value)
    return Standing(rung=standing.rung, above=above, below_since=since, value=value)


class Ladder:
    """The rung of a board, from one reading to the next.

    Args:
        table: The signals by name.
    """

    def __init__(self, table: Mapping[str, Signal] | None = None) -> None:
        self._table = dict(table or signals())
        self._standings = dict.fromkeys(self._table, Standing())

    @property
    def rung(self) -> Rung:
        """The highest of all signals."""
        return max(standing.rung for standing in self._standings.values())

    def read(self, readings: Mapping[str, float | None], *, now: float) -> Rung:
        """Take one reading of every signal; returns the rung.

        Args:
            readings: By the signal's name; higher is worse. One that is missing counts as one that cannot be had.
            now: Monotonic time in seconds.
        """
        for name, signal in self._table.items():
            self._standings[name] = advance(self._standings[name], signal, readings.get(name), now)
        return self.rung

    @property
    def reason(self) -> str:
        """The signals that hold the board on its rung, with their readings; empty on the normal one."""
        rung = self.rung
        if rung is Rung.NORMAL:
            return ""
        holding = {name: each for name, each in self._standings.items() if each.rung is rung}
        return ", ".join(
            f"{name} {'unknown' if each.value is None else self._table[name].in_words(each.value)}"
            for name, each in holding.items()
        )
