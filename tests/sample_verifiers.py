"""Verifiers that tests name as pkg.mod:fn."""

import functools

from kray.rewards import Reward


def first_is_even(response: str, answer: str) -> float:
    """Reward an even first digit: an untrained policy writes one now and then, and it is learned quickly."""
    return float(response[:1] in ("0", "2", "4", "6", "8"))


def fails_on_odd(response: str, answer: str) -> float:
    """Raise for some responses, with text that no terminal takes."""
    if response[:1] in ("1", "3", "5", "7", "9"):
        raise RuntimeError("an odd digit\ud800\0\x1b[1m")
    return float(response[:1] == "0")


def fails_on_fives(response: str, answer: str) -> float:
    """Raise for some prompts, whatever the response."""
    if answer[-1:] in ("0", "5"):
        raise RuntimeError(f"{answer} cannot be judged")
    return first_is_even(response, answer)


def harder_for_long(response: str, answer: str) -> float:
    """Reward an even first digit for answers of one digit, and hardly ever for longer ones, so that kinds differ."""
    return first_is_even(response, answer) if len(answer) == 1 else float(response[:2] == answer[:2])


def echoes(response: str, answer: str) -> Reward:
    """Detail and output hold whatever the policy wrote."""
    print(response, "\ud800")
    return Reward(1.0, f"{response}\ud800\0\x1b[1m\n")


def raises_text(response: str, answer: str) -> float:
    raise RuntimeError(f"{response}\ud800\0\x1b[1m\n")


def no_number(response: str, answer: str) -> str:
    return f"{response}\ud800"


def no_reward(response: str, answer: str) -> float:
    """1 for an even first digit, and beyond all ranges for an odd one."""
    return {"1": 1e308, "3": -1e308, "5": float("nan"), "7": float("inf"), "9": 2.0}.get(
        response[:1], first_is_even(response, answer)
    )


def two_points(response: str, answer: str) -> float:
    return 2.0 * first_is_even(response, answer) - 1.0


def hostile(response: str, answer: str) -> Reward | float:
    """Text that no file or terminal takes, and values that are no rewards, by the first digit."""
    if response[:1] in ("1", "3"):
        return raises_text(response, answer)
    if response[:1] in ("5", "7", "9"):
        return no_reward(response, answer)
    return echoes(response, answer)


two_points_declared = functools.partial(two_points)
two_points_declared.reward_range = (-1.0, 1.0)


class Points:
    """Twenty points for an even first digit, a hundred, which no range holds, for 9, none else."""

    reward_range = (0, 20)

    def __call__(self, response: str, answer: str) -> float:
        return 100.0 if response[:1] == "9" else 20.0 * first_is_even(response, answer)


points = Points()


def no_range(response: str, answer: str) -> float:
    return 1.0


no_range.reward_range = (1, 0)
