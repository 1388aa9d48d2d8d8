"""Figures and names in words, as the page and the tables write them. Pure."""

from edgeops.manifest import Interval

_MEGABYTE = 1_000_000


def percent(share: float) -> str:
    """A share, for example ``99.90 %``."""
    return f"{100 * share:.2f} %"


def interval(share: Interval) -> str:
    """A share with its interval in per cent."""
    return f"{100 * share.value:.2f} % [{100 * share.low:.2f}, {100 * share.high:.2f}]"


def kilobytes(size_bytes: int) -> str:
    """A size, for example ``16.7 kB``."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= _MEGABYTE else f"{size_bytes / 1e3:.1f} kB"


def milliseconds(value: float) -> str:
    """A duration with three digits that say something, for example ``0.052 ms``."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"  # noqa: PLR2004 - two digits before the point


def decibel(value: float | None) -> str:
    """A signal-to-noise ratio; without noise there is none."""
    return "exact" if value is None else f"{value:.1f} dB"


def signed(points: float) -> str:
    """A difference with its sign, for example ``+0.31``; what rounds to nothing is positive.

    >>> signed(-0.001), signed(-0.31)
    ('+0.00', '-0.31')
    """
    return f"{round(points, 2) + 0.0:+.2f}"


def tail(name: str, length: int = 30) -> str:
    """The end of a long name, where names in a file differ."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def short_name(name: str) -> str:
    """The end of a layer's name in a file: TFLite writes the classes around a module, and all modules that were joined.

    >>> short_name("Positional/torch.nn.Sequential_module/torch.nn.ReLU6_2;;torch.nn.Sequential_module/torch.nn.Conv2d_0;1")
    'Sequential_module/Conv2d_0'
    >>> short_name("/features/conv/Conv")
    '/features/conv/Conv'
    """
    if ";" not in name:
        return name
    last = [part for part in name.split(";") if "/" in part or "." in part] or [name]
    return "/".join(part.rpartition(".")[2] for part in last[-1].split("/")[-2:])
