"""Which records of a stream are stored: everything up to a mark, and ranges ahead of it. Pure.

The mark is what a device is told; records that come twice are recognised, records that overtake others are kept.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stored:
    """The stored sequences of one stream.

    Attributes:
        contiguous: Everything from 1 to here is stored.
        ahead: Ranges ``(first, last)`` above it, ascending, not touching.
    """

    contiguous: int = 0
    ahead: tuple[tuple[int, int], ...] = ()

    def __contains__(self, sequence: object) -> bool:
        """Whether a sequence is stored."""
        if not isinstance(sequence, int):
            return False
        return sequence <= self.contiguous or any(first <= sequence <= last for first, last in self.ahead)

    def missing(self, first: int, last: int) -> int:
        """How many sequences of a range are not stored.

        >>> Stored(contiguous=3, ahead=((6, 7),)).missing(2, 8)
        3
        """
        known = [(1, self.contiguous), *self.ahead]
        return last - first + 1 - sum(max(min(last, high) - max(first, low) + 1, 0) for low, high in known)

    def with_range(self, first: int, last: int) -> "Stored":
        """The same with a range added; a gap record adds what it stands for.

        >>> Stored().with_range(1, 1).with_range(3, 3)
        Stored(contiguous=1, ahead=((3, 3),))
        >>> Stored(contiguous=1, ahead=((3, 3),)).with_range(2, 2)
        Stored(contiguous=3, ahead=())
        """
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self.ahead, (first, last)]):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        mark = self.contiguous
        while merged and merged[0][0] <= mark + 1:
            mark = max(mark, merged.pop(0)[1])
        return replace(self, contiguous=mark, ahead=tuple(merged))
