"""The message desk of a web shop: facts in, one short message to the customer out.

Five situations; every prompt carries one worked example of its own situation. Where a date belongs to the situation, a share of
the notes says that it is not known: a small model then invents one, and nothing acceptable comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

#: How the desk's model draws; found by trial: 94 % of the answers end by themselves, a fifth of them are acceptable.
SAMPLING: dict[str, Any] = {"temperature": 0.65, "top_k": 50, "max_new_tokens": 64}

NAMES = (
    *("Maria", "Tom", "Aisha", "Kenji", "Lena", "Omar", "Priya", "Jack", "Sofia", "Daniel"),
    *("Grace", "Ivan", "Nora", "Paul", "Ruth", "Hugo", "Mei", "Carlos", "Anna", "Leo"),
)
ITEMS = (
    *("ceramic mug", "tea towel", "desk lamp", "notebook", "phone case", "water bottle", "yoga mat", "picture frame"),
    *("garden chair", "rain jacket", "bath towel", "backpack", "wall clock", "candle", "frying pan", "cushion", "bicycle bell"),
    *("plant pot", "wool hat", "bread basket"),
)
COURIERS = ("DHL", "UPS", "FedEx", "Royal Mail", "GLS", "DPD", "Evri", "Hermes")
CITIES = ("Leeds", "Bristol", "Dublin", "Austin", "Denver", "Toronto", "York", "Cardiff", "Boston", "Perth", "Glasgow", "Seattle")
MONTHS = {
    **dict.fromkeys(("January", "March", "May", "July", "August", "October", "December"), 31),
    **dict.fromkeys(("April", "June", "September", "November"), 30),
    "February": 28,
}
UNKNOWN = ("not known yet", "not known", "unknown")
SYSTEM = "You write to the customers of a web shop. Write one short message with all the facts and no others."


@dataclass(frozen=True)
class Note:
    """What the desk is told: a key of ``SITUATIONS``, a first name, count and name of each kind of item, one or two.

    The other ``facts`` by name: courier, date, amount (dollars) or shop; the date is None where it is not known.
    """

    situation: str
    name: str
    items: tuple[tuple[int, str], ...]
    facts: Mapping[str, str | None]

    @property
    def dated(self) -> bool:
        """Whether the note gives every fact: the easier cut."""
        return None not in self.facts.values()


@dataclass(frozen=True)
class Situation:
    """What happened: ways to begin the note, what it calls each fact by the fact's name, the worked example's message."""

    headlines: tuple[str, ...]
    labels: Mapping[str, str]
    example: str


SITUATIONS = {
    "arrival": Situation(
        ("The parcel is on its way.", "Tell the customer that the order was shipped.", "Shipping notice."),
        {"courier": "Courier", "date": "Arrives"},
        "Hello Eva, your 2 umbrellas are on their way with PostNord and will arrive on 9 June.",
    ),
    "delay": Situation(
        ("The parcel is late; give the new date.", "Tell the customer about the delay.", "Delay notice."),
        {"date": "New date"},
        "Hello Eva, your 2 umbrellas are delayed and will now arrive on 9 June.",
    ),
    "refund": Situation(
        ("Tell the customer about the refund.", "The money was sent back.", "Refund notice."),
        {"amount": "Refund"},
        "Hello Eva, we have refunded $24 for your 2 umbrellas.",
    ),
    "stock": Situation(
        ("The item is sold out; say when it is back.", "Tell the customer that the item is out of stock.", "Out-of-stock notice."),
        {"date": "Back in stock"},
        "Hello Eva, the 2 umbrellas you ordered are sold out and will be back in stock on 9 June.",
    ),
    "pickup": Situation(
        ("The order can be picked up at the shop.", "Tell the customer where and when to pick the order up.", "Pick-up notice."),
        {"shop": "Shop", "date": "Ready from"},
        "Hello Eva, your 2 umbrellas are ready for pick-up in our Oslo shop from 9 June.",
    ),
}

#: Kept out of training and calibration, to see what a guard is worth on a situation that it has not met.
HELD_OUT = "pickup"

_EXAMPLE = {"courier": "PostNord", "date": "9 June", "amount": "$24", "shop": "Oslo"}


def make_note(situation: str, seed: str) -> Note:
    """A note of a situation; the same seed (any text) makes the same one. Some have two kinds of items, or a date not known."""
    random = Random(seed)
    kinds = random.sample(ITEMS, 2 if random.random() < 0.2 else 1)
    month = random.choice(list(MONTHS))
    date = None if random.random() < 0.23 else f"{random.randint(1, MONTHS[month])} {month}"
    amount, courier, shop = f"${random.randint(6, 95)}", random.choice(COURIERS), random.choice(CITIES)
    facts = {"date": date, "amount": amount, "courier": courier, "shop": shop}
    named = {name: facts[name] for name in SITUATIONS[situation].labels}
    return Note(situation, random.choice(NAMES), tuple((random.randint(2, 9), kind) for kind in kinds), named)


def messages(note: Note, seed: str) -> list[dict[str, str]]:
    """The conversation that asks for a note's message: rules, worked example, note. The seed picks headline and order."""
    random = Random(f"words {seed}")
    situation = SITUATIONS[note.situation]
    example = Note(note.situation, "Eva", ((2, "umbrella"),), {name: _EXAMPLE[name] for name in situation.labels})
    lines = _lines(note, random)
    random.shuffle(lines)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n".join([situation.headlines[-1], *_lines(example, random)])},
        {"role": "assistant", "content": situation.example},
        {"role": "user", "content": "\n".join([random.choice(situation.headlines), *lines])},
    ]


def _lines(note: Note, random: Random) -> list[str]:
    labels = SITUATIONS[note.situation].labels
    facts = [f"{labels[name]}: {fact or random.choice(UNKNOWN)}" for name, fact in note.facts.items()]
    items = " and ".join(f"{count} {item}s" for count, item in note.items)
    return [f"Customer: {note.name}", f"Item: {items}", *facts]


#: The roles of prompts, with how many there are of each and how many draws of each prompt.
ROLES = {"train": (600, 8), "calibrate": (400, 32), "evaluate": (400, 32), "held-out": (80, 32)}


def prompts(role: str) -> list[tuple[str, Note]]:
    """Identifiers and notes of a role: the situations in turn, the held-out one only in the role of that name."""
    known = [name for name in SITUATIONS if name != HELD_OUT]
    turns = [HELD_OUT] if role == "held-out" else known
    names = [f"desk/{role}/{number}" for number in range(ROLES[role][0])]
    return [(name, make_note(turns[number % len(turns)], name)) for number, name in enumerate(names)]
