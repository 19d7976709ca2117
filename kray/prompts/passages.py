"""Passages of two sentences to be summarized in one, with the facts that the summary has to name.

The facts stand in both sentences and further apart than a summary may be long, so that no part of the passage that is short
enough names them all. The answers are for the summary verifier (kray/rewards/summary.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kray.prompts.templates import Family, Task, Template

# Words of a summary at most: all facts fit with some to spare.
MOST_WORDS = 12

# A list of words in each line: people, cities, days, goods, places, animals, plants.
_LISTS = """
    Ann Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Will
    Athens Berlin Boston Cairo Dublin Geneva Leeds Lisbon London Madrid Oslo Paris Prague Rome Vienna York
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    bicycle blanket camera carpet chair clock coat guitar kettle lamp mirror piano radio sofa table tent
    bakery bank cinema garage hospital hotel library market museum park school station stadium theatre
    bird cat cow dog donkey goat goose hen horse lamb owl parrot pig pony rabbit sheep turtle
    apples beans carrots cherries grapes lemons melons onions peas plums potatoes roses tomatoes tulips
"""
_NAMES, _CITIES, _DAYS, _GOODS, _PLACES, _ANIMALS, _PLANTS = map(str.split, _LISTS.strip().splitlines())


class _Passage(NamedTuple):
    """A passage.

    Attributes:
        text: Its two sentences.
        asks: What the summary has to say.
        facts: For each fact the words that name it, of which one is enough.
        reference: A summary.
    """

    text: str
    asks: str
    facts: Sequence[Sequence[str]]
    reference: str


def _trip(rng: random.Random) -> _Passage:
    name, city, day = rng.choice(_NAMES), rng.choice(_CITIES), rng.choice(_DAYS)
    return _Passage(
        f"{name} packed a small bag early on {day}. The train was full, and after three hours it reached {city}.",
        "who went where on which day",
        ([name], [city], [day]),
        f"{name} took the train to {city} on {day}.",
    )


def _purchase(rng: random.Random) -> _Passage:
    name, thing, price = rng.choice(_NAMES), rng.choice(_GOODS), str(rng.randint(11, 99))
    return _Passage(
        f"{name} had wanted a {thing} for weeks. The last one in the shop cost {price} dollars, a fair price.",
        "who bought what for how much",
        ([name], [thing], [price]),
        f"{name} bought a {thing} for {price} dollars.",
    )


def _meeting(rng: random.Random) -> _Passage:
    (first, second), place = rng.sample(_NAMES, 2), rng.choice(_PLACES)
    return _Passage(
        f"{first} went for a walk after work. In front of the {place} stood an old friend from school, {second}.",
        "who met whom and where",
        ([first], [second], [place]),
        f"{first} met {second} in front of the {place}.",
    )


def _escape(rng: random.Random) -> _Passage:
    animal, name, place = rng.choice(_ANIMALS), rng.choice(_NAMES), rng.choice(_PLACES)
    return _Passage(
        f"The {animal} was gone, since the gate had been left open. {name} found it asleep behind the {place}.",
        "who found which animal and where",
        ([name], [animal], [place]),
        f"{name} found the {animal} behind the {place}.",
    )


def _garden(rng: random.Random) -> _Passage:
    name, plants, day = rng.choice(_NAMES), rng.choice(_PLANTS), rng.choice(_DAYS)
    return _Passage(
        f"{day} was warm, so {name} took a spade and went out. By noon there were two rows of {plants} in the garden.",
        "who planted what on which day",
        ([name], [plants], [day]),
        f"{name} planted {plants} on {day}.",
    )


def _template(make: Callable[[random.Random], _Passage]) -> Template:
    def draw(rng: random.Random) -> Task:
        passage = make(rng)
        return Task(
            text=f"{passage.text}\n\nSay in one sentence of at most {MOST_WORDS} words {passage.asks}.",
            answer=json.dumps({"words": MOST_WORDS, "facts": passage.facts}),
            reference=passage.reference,
        )

    return draw


_KINDS = {
    "trip": _trip,
    "purchase": _purchase,
    "meeting": _meeting,
    "escape": _escape,
    "garden": _garden,
}
PASSAGES = Family("passages", {kind: _template(make) for kind, make in _KINDS.items()})
