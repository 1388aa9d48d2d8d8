"""A verdict in words. Pure."""

from edgeops_fleet.drift.verdicts import DriftState, Effect, Verdict


def sentence(verdict: Verdict) -> str:
    """Why a verdict is what it is, for the log and the dashboard."""
    seen = f"{verdict.rows:,} rows in {_count(verdict.windows, 'window')}"
    match verdict.state:
        case DriftState.DRIFT if verdict.effect:
            found = _count(verdict.windows_to_detect or 0, "window")
            rows = f"{verdict.rows_to_detect or 0:,} rows"
            return f"{movement(verdict.effect)}; found within {found} and {rows}, {seen} so far"
        case DriftState.OK:
            return f"no change that matters in {seen}"
        case _ if verdict.rows_needed is None and verdict.windows:
            return f"{seen}; the reference has too few rows to show a change of the stated size"
        case _ if verdict.windows:
            return f"{seen}; {verdict.rows_needed:,} rows are needed to say that nothing has changed"
        case _:
            return "no complete window yet"


def movement(effect: Effect) -> str:
    """What moved, where to, by how much.

    >>> movement(Effect(signal="image.std", score="mean rank", shift=-0.31, low=-0.37, high=-0.25, evidence=12.0))
    'image.std: mean rank fell by 0.31 (0.25 to 0.37)'
    """
    verb = "fell" if effect.shift < 0 else "rose"
    bounds = (-effect.high, -effect.low) if effect.shift < 0 else (effect.low, effect.high)
    interval = " to ".join(f"{bound:.2f}" for bound in bounds)
    return f"{effect.signal}: {effect.score} {verb} by {abs(effect.shift):.2f} ({interval})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
