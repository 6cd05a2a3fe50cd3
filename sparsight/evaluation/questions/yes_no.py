"""Whether a written answer says yes or no, by the rules of benchmarks."""

from __future__ import annotations

YES, NO = 0, 1  # positions of options


def pope_yes_no(text: str) -> int:
    """No if the first sentence has the word no or not, yes otherwise, as POPE's authors count: nothing is neither."""
    words = text.partition(".")[0].replace(",", "").split()
    return NO if {"No", "no", "not"} & {*words} else YES


def mme_yes_no(text: str) -> int | None:
    """Yes or no within the first four characters, or a lone y or n, as MME's authors count; else none."""
    begun = text.lower().strip().replace(".", "")
    if begun in ("y", "n"):
        return YES if begun == "y" else NO
    if "yes" in begun[:4]:
        return YES
    return NO if "no" in begun[:4] else None
