"""Durations as people read them."""


def format_duration(seconds: float) -> str:
    """Return '45 s', '12 min' or '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
