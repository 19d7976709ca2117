"""How a mean is shown with its uncertainty."""

from __future__ import annotations

import math


def with_interval(mean: float, standard_error: float, digits: int = 3) -> str:
    """Return a mean with its 95 % interval, without one where it is not known, as of a single prompt.

    Args:
        mean: The mean.
        standard_error: Its standard error; NaN where it is not known.
        digits: After the point.
    """
    shown = f"{mean:.{digits}f}"
    return f"{shown} ± {1.96 * standard_error:.{digits}f}" if math.isfinite(standard_error) else shown
