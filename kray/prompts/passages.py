"""Passages of three sentences to be summarised in one, with the facts that the summary has to name.

The facts stand in different sentences and the limit is shorter than the passage, so that neither one of its sentences nor its
beginning names them all. The answers are for the summary verifier (kray/rewards/summary.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kray.prompts.templates import Family, Task, Template

# Words of a summary at most: all facts fit with some to spare.
MOST_WORDS = 14

_NAME_LIST = """
    Ann Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Will
"""
_NAMES = _NAME_LIST.split()
_CITIES = "Athens Berlin Boston Cairo Dublin Geneva Leeds Lisbon London Madrid Oslo Paris Prague Rome Vienna York".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_GOODS = "bicycle blanket camera carpet chair clock coat guitar kettle lamp mirror piano radio sofa table tent".split()
_PLACES = "bakery bank cinema garage hospital hotel library market museum park school station stadium theatre".split()
_ANIMALS = "bird cat cow dog donkey goat goose hen horse lamb owl parrot pig pony rabbit sheep turtle".split()
_TEAMS = "Bears Bulls Eagles Foxes Giants Hawks Kings Lions Pirates Rangers Sharks Stars Tigers Wolves".split()
_PLANTS = "apples beans carrots cherries grapes lemons melons onions peas plums potatoes roses tomatoes tulips".split()
_NUMERALS = "zero one two three four five six seven eight nine".split()


class _Passage(NamedTuple):
    """A passage.

    Attributes:
        sentences: Its sentences.
        asks: What the summary has to say.
        facts: For each fact the words that name it, of which one is enough.
        reference: A summary.
    """

    sentences: Sequence[str]
    asks: str
    facts: Sequence[Sequence[str]]
    reference: str


def _trip(rng: random.Random) -> _Passage:
    name, city, day = rng.choice(_NAMES), rng.choice(_CITIES), rng.choice(_DAYS)
    return _Passage(
        (
            f"{name} packed a small bag and left home early.",
            f"It was {day}, and the train was full of people.",
            f"After three hours it reached {city}, where the sun was shining.",
        ),
        "who travelled where on which day",
        ([name], [city], [day]),
        f"{name} took the train to {city} on {day}.",
    )


def _purchase(rng: random.Random) -> _Passage:
    name, thing, price = rng.choice(_NAMES), rng.choice(_GOODS), str(rng.randint(11, 99))
    return _Passage(
        (
            f"{name} had been looking for a {thing} for weeks.",
            "The shop at the corner had just one left.",
            f"It cost {price} dollars, which seemed a fair price for it.",
        ),
        "who bought what for how many dollars",
        ([name], [thing], [price]),
        f"{name} bought a {thing} for {price} dollars.",
    )


def _meeting(rng: random.Random) -> _Passage:
    (first, second), place = rng.sample(_NAMES, 2), rng.choice(_PLACES)
    return _Passage(
        (
            f"{first} went out to get some fresh air after work.",
            f"In front of the {place} there was a long line of people.",
            f"One of them was {second}, an old friend from school.",
        ),
        "who met whom at which place",
        ([first], [second], [place]),
        f"{first} met {second} at the {place}.",
    )


def _match(rng: random.Random) -> _Passage:
    (winner, loser), goals = rng.sample(_TEAMS, 2), rng.randint(3, 9)
    return _Passage(
        (
            f"The {loser} played well and scored first in front of a big crowd.",
            f"After the break the {winner} took over the game.",
            f"They scored {goals} goals and won in the end.",
        ),
        "which team beat which team with how many goals",
        ([winner], [loser], [str(goals), _NUMERALS[goals]]),
        f"The {winner} beat the {loser} with {goals} goals.",
    )


def _escape(rng: random.Random) -> _Passage:
    animal, name, place = rng.choice(_ANIMALS), rng.choice(_NAMES), rng.choice(_PLACES)
    return _Passage(
        (
            f"Somebody had left the gate open, and the {animal} was gone.",
            "People looked for it in every street of the town.",
            f"In the evening {name} found it asleep behind the {place}.",
        ),
        "who found which animal at which place",
        ([name], [animal], [place]),
        f"{name} found the {animal} behind the {place}.",
    )


def _garden(rng: random.Random) -> _Passage:
    name, plants, day = rng.choice(_NAMES), rng.choice(_PLANTS), rng.choice(_DAYS)
    return _Passage(
        (
            f"It had rained all week, but {day} was dry and warm.",
            f"{name} took a spade and worked in the garden until noon.",
            f"By then there were two long rows of {plants} behind the house.",
        ),
        "who planted what on which day",
        ([name], [plants], [day]),
        f"{name} planted {plants} on {day}.",
    )


def _template(make: Callable[[random.Random], _Passage]) -> Template:
    def draw(rng: random.Random) -> Task:
        passage = make(rng)
        asked = f"Summarize this in one sentence of at most {MOST_WORDS} words that says {passage.asks}."
        return Task(
            text=f"{' '.join(passage.sentences)}\n\n{asked}",
            answer=json.dumps({"words": MOST_WORDS, "facts": passage.facts}),
            reference=passage.reference,
        )

    return draw


_KINDS = {
    "trip": _trip,
    "purchase": _purchase,
    "meeting": _meeting,
    "match": _match,
    "escape": _escape,
    "garden": _garden,
}
PASSAGES = Family("passages", {kind: _template(make) for kind, make in _KINDS.items()})
