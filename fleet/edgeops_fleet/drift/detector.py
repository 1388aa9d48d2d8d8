"""Shiryaev–Roberts over a mixture of bets: has the stream changed, at some time that nobody knows?

The recursion ``R = (1 + R) · e`` adds up the evidence for a change before every window so far. While nothing has changed,
``R - t`` is a supermartingale, and so is the average over bets; by optional stopping the expected number of windows to the
first ``R ≥ A`` is at least ``A``, at whatever times one looks. Roberts, Technometrics 1966; Shiryaev, 1963; with e-values for
composite hypotheses: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection",
NEJSDS 2023. Everything is in logarithms, since a window may have ten thousand rows. Pure.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeops_fleet.drift.bets import BETS_PER_SCORE
from edgeops_fleet.drift.scores import FloatArray


def shiryaev_roberts(log_r: FloatArray, evidence: FloatArray) -> FloatArray:
    """One step of the recursion, in logarithms.

    Args:
        log_r: Any shape; minus infinity at the start.
        evidence: Same shape: logarithm of the window's e-value.

    >>> step = shiryaev_roberts(np.array([-np.inf, 0.0]), np.log([2.0, 2.0]))
    >>> np.exp(step).round(6).tolist()
    [2.0, 4.0]
    """
    result: FloatArray = np.logaddexp(0.0, log_r) + evidence
    return result


def mixture(log_r: FloatArray, log_weights: FloatArray) -> FloatArray:
    """The logarithm of the weighted mean over bets, the last axis.

    >>> float(np.exp(mixture(np.log([1.0, 3.0]), np.log([0.5, 0.5]))).round(6))
    2.0
    """
    weighted = log_r + log_weights
    top = np.maximum(weighted.max(axis=-1, keepdims=True), -1e300)
    result: FloatArray = top[..., 0] + np.log(np.exp(weighted - top).sum(axis=-1))
    return result


class Detector:
    """The state of one stream: two numbers and a start for each bet, however long it runs.

    Beside the Shiryaev–Roberts sum it keeps each bet's CUSUM (Page, 1954), whose last start is the usual estimate of when the
    change began.
    """

    def __init__(self, log_weights: FloatArray) -> None:
        self._log_weights = log_weights
        self._log_r = np.full(len(log_weights), -np.inf)
        self._cusum = np.zeros(len(log_weights))
        self._starts = np.zeros(len(log_weights), dtype=np.int64)
        self.windows = 0

    def dump(self) -> dict[str, Any]:
        """Everything that it remembers, as lists and numbers."""
        return {
            "log_r": self._log_r.tolist(),
            "cusum": self._cusum.tolist(),
            "starts": self._starts.tolist(),
            "windows": self.windows,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where another one with the same bets stood."""
        self._log_r = np.asarray(state["log_r"], dtype=np.float64)
        self._cusum = np.asarray(state["cusum"], dtype=np.float64)
        self._starts = np.asarray(state["starts"], dtype=np.int64)
        self.windows = state["windows"]
        if not len(self._log_r) == len(self._cusum) == len(self._starts) == len(self._log_weights):
            raise ValueError(f"expected {len(self._log_weights)} bets, got {len(self._log_r)}")

    def update(self, evidence: FloatArray) -> float:
        """Take in a window.

        Args:
            evidence: Shape ``(bets,)``, from :meth:`edgeops_fleet.drift.bets.Bets.evidence`.

        Returns:
            The logarithm of the mixture; alarm when it reaches the logarithm of the threshold.
        """
        self._starts[self._cusum <= 0] = self.windows
        self._cusum = np.maximum(self._cusum, 0.0) + evidence
        self._log_r = shiryaev_roberts(self._log_r, evidence)
        self.windows += 1
        return self.log_evidence

    @property
    def log_evidence(self) -> float:
        """The logarithm of the mixture now; minus infinity before the first window."""
        return float(mixture(self._log_r, self._log_weights)) if self.windows else -math.inf

    def by_score(self) -> FloatArray:
        """The logarithm of the evidence of each score's bets alone, once there was a window: shape ``(scores,)``."""
        return mixture(self._log_r.reshape(-1, BETS_PER_SCORE), np.full(BETS_PER_SCORE, -math.log(BETS_PER_SCORE)))

    def onset(self) -> int:
        """The index, from 0, of the window in which the change that the strongest bet sees began."""
        return int(self._starts[int(np.argmax(self._log_r + self._log_weights))]) if self.windows else 0


def log_threshold(false_alarm_windows: float, streams: int = 1) -> float:
    """The threshold that keeps the promise for several streams together, by adding up their rates of false alarms.

    >>> round(math.exp(log_threshold(1000.0, 8)))
    8000
    """
    return math.log(false_alarm_windows) + math.log(max(streams, 1))
