"""Questions without images about what even small instructed language models know: what was forgotten?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np

from datamodules.sampler import derive_seed
from datamodules.sources.records import Record, RecordSource
from sparsight.lvlm.chat.conversation import Conversation, Turn

Kind = Literal[
    "opposites",
    "capitals",
    "young_animals",
    "plurals",
    "past_tenses",
    "categories",
    "colours",
    "successors",
    "quantities",
    "sums",
    "products",
]
CANDIDATES = 4
_WORD, _NUMBER = " Answer in one word.", " Answer with a number."


class _Item(NamedTuple):
    question: str
    answer: str
    wrong: list[str]  # three are drawn


class TextQuestions(RecordSource):
    """Some 300 questions of general knowledge in eleven kinds, made by code, with four candidates each.

    They are for evaluation: a model that was tuned on images should still answer them as it did before. The task of
    an item is ``text_`` and its kind.

    Args:
        kinds: Which kinds are asked; all of them if not given.
        seed: Decides the wrong candidates and the order of candidates.

    Raises:
        ValueError: A kind is unknown.
    """

    def __init__(self, kinds: list[Kind] | None = None, seed: int = 0) -> None:
        self.kinds: list[Kind] = list(get_args(Kind)) if kinds is None else kinds
        self.seed = seed
        self._items: list[tuple[Kind, _Item]] = []
        if not self.kinds or not set(self.kinds) <= set(get_args(Kind)):
            raise ValueError(f"kinds is {self.kinds}; allowed: {', '.join(get_args(Kind))}")

    def _open(self) -> None:
        self._items = [(kind, item) for kind in self.kinds for item in _KINDS[kind]()]

    def content(self) -> Iterator[object]:
        """The questions, and what they are asked by."""
        self.open()
        return iter([self.seed, *self._items])

    @property
    def classes(self) -> None:
        """There are none."""
        return None

    def __len__(self) -> int:
        """Number of questions."""
        self.open()
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        """A question with its candidates, and no image."""
        self.open()
        kind, item = self._items[index]
        rng = np.random.default_rng(derive_seed(self.seed, index))
        wrong = sorted(set(item.wrong) - {item.answer})
        drawn = rng.permutation(wrong)[: CANDIDATES - 1].tolist()
        order = rng.permutation(CANDIDATES)
        candidates = tuple([item.answer, *drawn][place] for place in order)
        turns = (Turn("user", item.question), Turn("assistant", item.answer))
        conversation = Conversation(turns, (), candidates, candidates.index(item.answer), f"text_{kind}")
        return Record(id=f"{kind} {index}", image=None, conversation=conversation)


def _pairs(table: str) -> list[tuple[str, str]]:
    return [(left.strip(), right.strip()) for left, right in (pair.split(":") for pair in table.split(","))]


def _from_table(table: str, question: str) -> Callable[[], Iterator[_Item]]:
    """Items whose wrong candidates are the answers to the others."""

    def make() -> Iterator[_Item]:
        pairs = _pairs(table)
        for asked, answer in pairs:
            yield _Item(question.format(asked) + _WORD, answer, [other for _, other in pairs])

    return make


def _from_forms(table: str, question: str, wrong: str) -> Callable[[], Iterator[_Item]]:
    """Items whose wrong candidates are made from the word {0} and its right form {1}."""

    def make() -> Iterator[_Item]:
        for word, answer in _pairs(table):
            yield _Item(question.format(word) + _WORD, answer, wrong.format(word, answer).split())

    return make


def _from_number(question: str, answer: int, *, other: int = 10) -> _Item:
    near = {answer + step for step in (-2, -1, 1, 2, other)}
    return _Item(question + _NUMBER, str(answer), [str(number) for number in near if number > 0])


def _categories() -> Iterator[_Item]:
    for category, words in CATEGORIES.items():
        for word in words.split():
            yield _Item(f'Which group does "{word}" belong to?' + _WORD, category, list(CATEGORIES))


def _successors() -> Iterator[_Item]:
    for what, names in SERIES.items():
        series = names.split()
        for now, following in pairwise(series):
            yield _Item(f"Which {what} comes right after {now}?" + _WORD, following, [n for n in series if n != now])


def _quantities() -> Iterator[_Item]:
    for asked, answer in _pairs(QUANTITIES):
        yield _from_number(f"How many {asked}?", int(answer))


def _sums() -> Iterator[_Item]:
    for number in range(30):
        a, b = 2 + number, 3 + 7 * number % 29
        yield _from_number(f"What is {a} + {b}?", a + b)


def _products() -> Iterator[_Item]:
    for a in range(2, 10):
        for b in range(a, 10, 3):
            yield _from_number(f"What is {a} times {b}?", a * b, other=a)


OPPOSITES = """hot: cold, day: night, up: down, left: right, early: late, open: closed, full: empty, wet: dry,
heavy: light, fast: slow, old: young, rich: poor, loud: quiet, hard: soft, clean: dirty, high: low, strong: weak,
happy: sad, black: white, first: last, true: false, begin: end, buy: sell, push: pull, laugh: cry, win: lose,
friend: enemy, north: south, east: west, inside: outside, arrive: leave, remember: forget, sweet: bitter, thick: thin,
wide: narrow"""
CAPITALS = """France: Paris, Italy: Rome, Spain: Madrid, Germany: Berlin, Japan: Tokyo, China: Beijing, Russia: Moscow,
Egypt: Cairo, Greece: Athens, Portugal: Lisbon, Austria: Vienna, Poland: Warsaw, Sweden: Stockholm, Norway: Oslo,
Denmark: Copenhagen, Finland: Helsinki, Ireland: Dublin, Hungary: Budapest, Turkey: Ankara, Iran: Tehran,
Iraq: Baghdad, Cuba: Havana, Peru: Lima, Chile: Santiago, Argentina: Buenos Aires, Canada: Ottawa,
Australia: Canberra, Kenya: Nairobi, Thailand: Bangkok, Vietnam: Hanoi, South Korea: Seoul, the Netherlands: Amsterdam,
Belgium: Brussels, Switzerland: Bern, the United Kingdom: London, Ukraine: Kyiv, Romania: Bucharest, Nepal: Kathmandu,
Cambodia: Phnom Penh, Jamaica: Kingston"""
YOUNG_ANIMALS = """dog: puppy, cat: kitten, cow: calf, sheep: lamb, horse: foal, goat: kid, pig: piglet, hen: chick,
duck: duckling, goose: gosling, bear: cub, deer: fawn, kangaroo: joey, frog: tadpole, swan: cygnet, eagle: eaglet"""
PLURALS = """child: children, man: men, woman: women, foot: feet, tooth: teeth, goose: geese, mouse: mice, ox: oxen,
person: people, leaf: leaves, knife: knives, wife: wives, life: lives, wolf: wolves, half: halves, shelf: shelves,
thief: thieves, loaf: loaves, calf: calves, city: cities, baby: babies, story: stories, party: parties, louse: lice"""
PAST_TENSES = """go: went, see: saw, eat: ate, take: took, give: gave, come: came, run: ran, write: wrote, drink: drank,
swim: swam, sing: sang, begin: began, fly: flew, grow: grew, know: knew, throw: threw, break: broke, speak: spoke,
choose: chose, forget: forgot, bring: brought, buy: bought, catch: caught, teach: taught, think: thought, feel: felt,
keep: kept, leave: left, stand: stood, tell: told"""
COLOURS = """grass: green, fresh snow: white, coal: black, blood: red, a clear sky at noon: blue, a ripe banana: yellow,
a carrot: orange, milk: white, a lemon: yellow, dark chocolate: brown, a ripe tomato: red, a strawberry: red,
spinach: green, salt: white, soot: black, a pumpkin: orange, a raven: black, an emerald: green, a ruby: red,
a sapphire: blue, a flamingo: pink, an elephant: grey, a coffee bean: brown, a polar bear: white"""
CATEGORIES = {
    "animals": "horse tiger rabbit camel dolphin",
    "vegetables": "carrot onion cabbage spinach broccoli",
    "tools": "hammer saw screwdriver wrench pliers",
    "instruments": "violin piano trumpet guitar flute",
    "vehicles": "car bus lorry bicycle tram",
    "countries": "Brazil Kenya Japan Poland Canada",
    "metals": "iron copper silver zinc aluminium",
    "trees": "oak birch maple willow pine",
    "clothes": "shirt trousers jacket scarf skirt",
}
SERIES = {
    "day of the week": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "number": "one two three four five six seven eight nine ten eleven twelve",
    "letter of the alphabet": "A B C D E F G",
}
QUANTITIES = """days are in a week: 7, months are in a year: 12, minutes are in an hour: 60, hours are in a day: 24,
seconds are in a minute: 60, sides does a triangle have: 3, sides does a square have: 4, sides does a hexagon have: 6,
legs does a spider have: 8, legs does an insect have: 6, legs does a dog have: 4, wheels does a bicycle have: 2,
wheels does a tricycle have: 3, letters are in the English alphabet: 26, years are in a century: 100,
years are in a decade: 10, eggs are in a dozen: 12, arms does an octopus have: 8, continents are there: 7,
planets go around the sun: 8, centimetres are in a metre: 100, fingers are on one hand: 5,
strings does a violin have: 4"""

_KINDS: dict[Kind, Callable[[], Iterator[_Item]]] = {
    "opposites": _from_table(OPPOSITES, 'What is the opposite of "{}"?'),
    "capitals": _from_table(CAPITALS, "What is the capital of {}?"),
    "young_animals": _from_table(YOUNG_ANIMALS, "What is a young {} called?"),
    "plurals": _from_forms(PLURALS, 'What is the plural of "{}"?', "{0}s {0}es {0}en {1}s"),
    "past_tenses": _from_forms(PAST_TENSES, 'What is the past tense of "{}"?', "{0}ed {0}s {0}ing {1}ed"),
    "categories": _categories,
    "colours": _from_table(COLOURS, "Which colour is {}?"),
    "successors": _successors,
    "quantities": _quantities,
    "sums": _sums,
    "products": _products,
}
