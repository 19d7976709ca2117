"""Verifiers that tests name as pkg.mod:fn."""


def first_is_even(response: str, answer: str) -> float:
    """1 for a response that begins with an even digit: an untrained policy finds it now and then, and it is quickly learned."""
    return float(response[:1] in ("0", "2", "4", "6", "8"))


def fails_on_odd(response: str, answer: str) -> float:
    """A verifier with a defect."""
    if response[:1] in ("1", "3", "5", "7", "9"):
        raise RuntimeError("an odd digit")
    return float(response[:1] == "0")


judged = 0  # in this process


def fails_on_odd_then_always(response: str, answer: str, good: int) -> float:
    """The same, and after `good` answers it is of no use at all."""
    global judged
    judged += 1
    if judged > good:
        raise RuntimeError("it is broken now")
    return fails_on_odd(response, answer)
