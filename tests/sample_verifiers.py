"""Verifiers that tests name as pkg.mod:fn."""


def first_is_even(response: str, answer: str) -> float:
    """1 for a response that begins with an even digit: an untrained policy finds it now and then, and it is quickly learned."""
    return float(response[:1] in ("0", "2", "4", "6", "8"))


def fails_on_odd(response: str, answer: str) -> float:
    """A verifier with a defect."""
    if response[:1] in ("1", "3", "5", "7", "9"):
        raise RuntimeError("an odd digit")
    return float(response[:1] == "0")


def fails_on_fives(response: str, answer: str) -> float:
    """A verifier that some prompts break, whatever the response."""
    if answer[-1:] in ("0", "5"):
        raise RuntimeError(f"{answer} cannot be judged")
    return first_is_even(response, answer)


def harder_for_long(response: str, answer: str) -> float:
    """1 for an even first digit where the answer has one digit, hardly ever where it has more: a prompt's kind tells."""
    return first_is_even(response, answer) if len(answer) == 1 else float(response[:2] == answer[:2])
