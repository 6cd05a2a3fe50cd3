"""What a written answer says, apart from how it is dressed: emphasis, formulas, quotes, ``The answer is``, numbers."""

from __future__ import annotations

import re
import unicodedata

_BRACKETS = str.maketrans("\u3010\u3011\u3014\u3015\u300c\u300d\u300e\u300f\u2018\u2019\u201c\u201d", "[][]''''''\"\"")
_DASHES = str.maketrans("\u2013\u2014\u2212", "---", "\u200b\u200c\u200d\u2060\ufeff")  # the rest has no width
_TAGGED = re.compile(r"<(answer|final_answer|final|box)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_FORMULA = re.compile(r"\\[A-Za-z]+\s*\{([^{}]*)\}|\\[()\[\]]|\$+")
_PAIR = re.compile(r"<(b|i|u|p|s)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(
    r"</?(?:answer|final_answer|final|box|option|choice|strong|em|code|span|br|div|end_of_turn)\s*/?>|<\|[^|<>]*\|>",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*+|_{2,}|`+|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)|^\s*(?:#+|>+|[-\u2022])\s+", re.MULTILINE)
_QUOTES = re.compile(r"(?<!\w)['\"]|['\"](?!\w)")
_LEAD = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore)\W+)?"
    r"(?:(?:(?:the|my)\s+)?(?:(?:most\s+likely|correct|right|best|final)\s+)*(?:answer|option|choice)(?!\w)"
    r"(?:\s+(?:to\s+(?:the|this)\s+question|here))?"
    r"|(?:i\s+(?:think|believe|guess)\s+)?(?:it|this|that)(?=\s+is\b|'s\b)|(?=is\b))"
    r"(?:\s*'s|\s*(?:is|would\s+be|must\s+be|should\s+be))?(?!\w)\s*[:=-]*\s*",
    re.IGNORECASE,
)
_THERE = re.compile(r"\W*there(?:\s+is|'s|\s+are)\b\s*", re.IGNORECASE)
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")


def undressed(text: str) -> str:
    r"""A text without emphasis, formula marks, tags and quotes, full-width characters as usual ones.

    Where an answer is put into a box (``\boxed{}``) or between tags (``<answer>``), the last of them is the text.
    """
    text = unicodedata.normalize("NFKC", text).translate(_BRACKETS).translate(_DASHES)
    for inside in (_TAGGED, _BOXED):
        found = [match[match.lastindex or 0] for match in inside.finditer(text)]
        if found and found[-1].strip():
            text = found[-1]
    for _ in range(3):  # one inside another, such as \\mathbf{\\text{B}}
        text = _FORMULA.sub(lambda match: match[1] or "", text)
    return _QUOTES.sub("", _EMPHASIS.sub("", _TAG.sub("", _PAIR.sub(r"\2", text)))).strip()


def lead_end(text: str) -> int:
    """How far ``The answer is``, ``Answer:``, ``It is`` or the like reach into a text that begins with it."""
    found = _LEAD.match(text)
    return found.end() if found else 0


def without_lead(text: str) -> str:
    """A text without what ``lead_end`` finds, and without ``There are``."""
    rest = text[lead_end(text) :]
    found = _THERE.match(rest)
    return rest[found.end() :] if found else rest


def plain_words(text: str) -> list[str]:
    """Words and numbers of a text in lower case; number words up to twenty, and 1,000, as digits.

    What joins two words is left out, so that T-shirt and Tshirt are one; a sign belongs to its number.
    """
    joined = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", "", text.casefold())
    joined = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", joined)
    words = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|\w+", joined)
    return [_DIGITS.get(word, word) for word in words]


def without_article(words: list[str]) -> list[str]:
    """Words without a leading article, unless there is nothing else."""
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def same_answer(written: str, right: str) -> bool:
    """Whether a text begins with an answer, whatever its case, dress, punctuation, leading article or ``It is``.

    Only whole words and numbers count: "no" is not in "nothing", nor 3 in 3.5. The letter "A" is no article where it
    is the answer. "Yes and no" is neither.
    """
    said = undressed(written)
    wanted = plain_words(undressed(right))
    for words in (plain_words(said), plain_words(without_lead(said))):
        for own, asked in ((words, wanted), (without_article(words), without_article(wanted))):
            both = asked in (["yes"], ["no"]) and own[1:3] in (
                ["and", "no"],
                ["or", "no"],
                ["and", "yes"],
                ["or", "yes"],
            )
            if wanted and own[: len(asked)] == asked and not both:
                return True
    return False
