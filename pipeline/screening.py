"""
The screen for prompts: terms that are refused before anything is paid, and how they are found in what is asked.

A term is one word or several in a row, whole words only; with `*` at its end the last one may go on. Both sides are
folded alike: by Unicode's compatibility forms, without case, accents and invisible characters. Letters that only look
Latin are read as Latin, too, where they stand in for it: in words of mixed scripts, and in texts that have no other
letters of their script. Digits between letters are read as the letters they stand for (`n4ked`), too, and letters that
stand alone in a row as a word (`n a k e d`, `n-a-k-e-d`), but not what looks like an abbreviation (`N.A.T.O.`) or a row
of one letter. It stops what people write every day, not those who set out to get by: behind it is the provider's own
moderation, and before it may be a function of the operator's.

Source: https://www.unicode.org/reports/tr15/ (compatibility forms), https://www.unicode.org/reports/tr39/ (lookalikes)
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

CATEGORIES = ("adult", "hate", "political", "real_person", "violence")
"""What lists of terms are about: the categories of the models' own policies."""

EVERYONE = "all"
"""The scope of terms that hold for every service; else it is a service's id."""

MAX_TERM = 100
"""How long a term may be, in characters."""

_AVOIDED = "negative_prompt"
"""What is not to be seen in the picture is named there, so that it is no use to look for it."""

_SHORTEST_STEM = 3
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_FILE = re.compile(r"(?:https?://|data:[a-z]+/)\S*", re.IGNORECASE)

_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(r"[\w\u07a6-\u07b0\u0900-\u0963\u0966-\u0dff]+")  # with the vowel signs that \w does without
_UNSPACED = "\u0e01-\u0e4e\u0e81-\u0ecd\u0f40-\u0fbc\u1000-\u109f\u1780-\u17d3\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_ALONE = re.compile(f"[{_UNSPACED}]")  # in scripts without spaces any character may begin a word
_GAP = re.compile(f"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")

_MARKS = re.compile(r"[^\w\s]{50}")  # sorting a run of them takes Python the square of its length
_PIECE = re.compile(r"(?s).{1,200}")

_UNSEEN = re.compile(  # invisible, or an accent that may be left out: Latin, Greek, Cyrillic, Hebrew, Arabic
    "[\x00-\x08\x0e-\x1b\x7f\u00ad\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061c\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u3164\ufe00-\ufe0f"
    "\ufe20-\ufe2f\ufeff\uffa0\ufff9-\ufffb\U0001d165-\U0001d182\U000e0000-\U000e0fff]"
)

_PLAIN = str.maketrans(
    dict(zip("øđħıłŧƒɑɡɩɪʀʏᴀʙᴄᴅᴇꜰɢʜᴊᴋʟᴍɴᴏᴘꜱᴛᴜᴠᴡᴢ", "odhiltfagiiryabcdefghjklmnopstuvwz", strict=True))
    | {chr(first + at): chr(97 + at) for first in (0x1F150, 0x1F170, 0x1F1E6) for at in range(26)}
    | {"æ": "ae", "œ": "oe"}
)
"""Latin letters of an odd make, small capitals and letters on tiles: as plain ones."""

_LOOKALIKES = str.maketrans(
    dict(zip("АВЕЅІЇЈКМНОРСТУХаеѕіїјкморстухԁһԛԝӏѵ", "ABESIIJKMHOPCTYXaesiijkmopctyxdhqwlv", strict=True))
    | dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαγεηικνορτυχω", "ABEZHIKMNOPTYXayenikvoptuxw", strict=True))
    | dict(zip("ԱՍՏՕաոսց", "UUSOwnug", strict=True))
)
"""Letters of other scripts that look Latin: Cyrillic, Greek, Armenian."""

_FOREIGN = re.compile("[\u0370-\u052f\u0531-\u0587]")
_OF_THEIR_OWN = re.compile(f"[^\\W_\x00-\u036f\u0588-\U0010ffff{''.join(map(chr, _LOOKALIKES))}]")
_RUN = re.compile(r"[^\W_]+")
_LATIN = re.compile("[A-Za-z]")


_MAY_BE_SPELLED = re.compile("[ ._-][A-Za-z0-9][ ._-][A-Za-z0-9](?![A-Za-z0-9])")  # costs a quarter of the next
_SPELLED = re.compile(r"(?<![^\W_])(?<!['\u2019])[A-Za-z]([ ._-])[A-Za-z0-9](?:\1[A-Za-z0-9])+(?<=[A-Za-z])(?![^\W_])")
_ARTICLES = frozenset("aAiI")
_MAY_HAVE_DIGITS = re.compile(r"[013457](?<=[^\W\d_].)")
_DIGITS = re.compile("(?<=[a-z])[013457]+(?=[a-z])")
_READ_AS = tuple(str.maketrans("013457", letters) for letters in ("oieast", "oleast"))
"""The letters that digits stand for: one may be an I or an L."""


def words(text: str) -> list[str]:
    """The words of *text*, folded; a character of a script without spaces is a word by itself."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _split(_folded(_bared(text)))


def readings(text: str) -> list[list[str]]:
    """The words of *text*; and, where letters may be in disguise, the words they look like."""
    forms = [text]
    if not text.isascii():
        forms = [_bared(text)]
        if _FOREIGN.search(forms[0]):
            forms.append(_unmasked(forms[0]))
    for form in [form for form in forms if _MAY_BE_SPELLED.search(form)]:
        for article_apart in (False, True):
            if (joined := _joined(form, article_apart=article_apart)) not in forms:
                forms.append(joined)
    found: dict[tuple[str, ...], None] = {}
    for form in forms:
        said = _ASCII_WORD.findall(form.lower()) if form.isascii() else _split(_folded(form))
        found[tuple(said)] = None
        if _MAY_HAVE_DIGITS.search(form):
            for letters in _READ_AS:
                found[tuple(_lettered(word, letters) for word in said)] = None
    return [list(said) for said in found]


def _lettered(word: str, letters: Mapping[int, int]) -> str:
    return _DIGITS.sub(lambda digits: digits[0].translate(letters), word)


def _joined(text: str, *, article_apart: bool) -> str:
    """Write letters that stand alone in a row as one word; *article_apart*: but for an `a` or `I` at its beginning."""

    def one(row: re.Match[str]) -> str:
        letters = row[0][::2]
        article = letters[0] if article_apart and letters[0] in _ARTICLES else ""
        word = letters.removeprefix(article)
        if len({*word.lower()}) == 1 or (row[1] == "." and letters.isupper()):
            return row[0]
        return f"{article} {word}"

    return _SPELLED.sub(one, text)


def _bared(text: str) -> str:
    return _UNSEEN.sub("", _normalised("NFKD", _UNSEEN.sub("", text)))


def _folded(bared: str) -> str:
    return _normalised("NFC", _UNSEEN.sub("", _normalised("NFKD", bared.casefold()))).translate(_PLAIN)


def _normalised(form: Any, text: str) -> str:
    if not _MARKS.search(text):
        return unicodedata.normalize(form, text)
    return "".join([unicodedata.normalize(form, piece) for piece in _PIECE.findall(text)])


def _unmasked(bared: str) -> str:
    if _OF_THEIR_OWN.search(bared):  # it is in that language: then only a word of two scripts is odd
        return _RUN.sub(lambda run: run[0].translate(_LOOKALIKES) if _LATIN.search(run[0]) else run[0], bared)
    return bared.translate(_LOOKALIKES)


def _split(folded: str) -> list[str]:
    return _WORD.findall(_ALONE.sub(r" \g<0> ", folded.replace("_", " ")))


def normal(term: str) -> str:
    """
    A term in the one spelling that it is kept in, whatever the spelling it is given in.

    Raises:
        ValueError: It is no term; says why.
    """
    text = term.strip()
    open_ended = text.endswith("*")
    if "*" in text[:-1]:
        raise ValueError("may have one *, at its end")
    parts = words(text)
    letters = "".join(parts)
    if not letters or (letters.isascii() and len(letters) < 2):
        raise ValueError("must have at least two letters or digits")
    if _ALONE.match(parts[-1]):
        open_ended = False  # there, any character may end a word
    if open_ended and len(parts[-1]) < (_SHORTEST_STEM if parts[-1].isascii() else 2):
        raise ValueError(f"must have at least {_SHORTEST_STEM} letters before its *")
    found = _GAP.sub("", " ".join(parts)) + ("*" if open_ended else "")
    if len(found) > MAX_TERM:
        raise ValueError(f"must have at most {MAX_TERM} characters")
    return found


@dataclass(frozen=True, slots=True)
class Term:
    """One term, in its `normal` spelling, of one list."""

    category: str
    text: str


class _Node:
    """What may follow some words: further words, or the beginning of a last one; and the terms that end here."""

    __slots__ = ("ends", "lengths", "stems", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Node] = {}
        self.stems: dict[str, list[Term]] = {}
        self.lengths: list[int] = []  # of the stems
        self.ends: list[Term] = []

    def begun(self, word: str) -> Iterator[Term]:
        """Terms whose last word begins as *word* does."""
        for length in self.lengths:
            yield from self.stems.get(word[:length], ())


class Terms:
    """Terms, made ready to be looked for all at once: the time it takes hangs on the text, not on their number."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self._root = _Node()
        for term in terms:
            node, said = self._root, words(term.text)
            stem = said.pop() if term.text.endswith("*") and said else None
            for word in said:
                node = node.words.setdefault(word, _Node())
            if stem is None:
                node.ends.append(term)
                continue
            node.stems.setdefault(stem, []).append(term)
            if len(stem) not in node.lengths:
                node.lengths.append(len(stem))
        self._shortest = min(self._root.lengths, default=0)
        self._starts = {stem[: self._shortest] for stem in self._root.stems}

    def __bool__(self) -> bool:
        return bool(self._root.words or self._root.stems)

    def among(self, said: Sequence[str]) -> set[Term]:
        """Those that stand among the words *said*."""
        found: set[Term] = set()
        if not self._root.words.keys().isdisjoint(said):
            for at, word in enumerate(said):
                node, after = self._root.words.get(word), at + 1
                while node:
                    found.update(node.ends)
                    if after == len(said):
                        break
                    found.update(node.begun(said[after]))
                    node, after = node.words.get(said[after]), after + 1
        if self._starts and not self._starts.isdisjoint([word[: self._shortest] for word in said]):
            for word in said:
                found.update(self._root.begun(word))
        return found


class Screen:
    """The terms that one service's prompts are looked through for."""

    def __init__(self, lists: Sequence[Terms]) -> None:
        self._lists = [one for one in lists if one]

    def __bool__(self) -> bool:
        return bool(self._lists)

    def terms(self, text: str) -> set[Term]:
        """Those that *text* has in it."""
        found: set[Term] = set()
        for said in readings(text):
            for one in self._lists:
                found |= one.among(said)
        return found

    def problems(self, model_input: Mapping[str, Any]) -> dict[str, set[str]]:
        """The categories that an input is refused for, by its field; shows nothing that it says."""
        found: dict[str, set[str]] = {}
        if self._lists:
            for field, text in texts(model_input):
                if terms := self.terms(text):
                    found.setdefault(field, set()).update(term.category for term in terms)
        return found

    def minds(self, value: Any) -> bool:
        """Whether anything would be refused of *value*, JSON of any shape, the names in it included."""
        return bool(self._lists) and any(self.terms(text) for text in _all_texts(value))


class Screens:
    """The lists of terms as a process last knew them. Immutable, and shared by its threads."""

    def __init__(self, rows: Iterable[tuple[str, str, str]] = (), exempt: Iterable[tuple[str, str]] = ()) -> None:
        """Of *rows* of scope, category and term; *exempt*: scopes, each with a category whose general list is off."""
        by_scope: dict[str, list[Term]] = defaultdict(list)
        for scope, category, term in rows:
            by_scope[scope].append(Term(category, term))
        self._own = {scope: Terms(terms) for scope, terms in by_scope.items() if scope != EVERYONE}
        self._everyones = by_scope[EVERYONE]
        self._exempt: dict[str, frozenset[str]] = {}
        for scope, category in exempt:
            self._exempt[scope] = self._exempt.get(scope, frozenset()) | {category}
        self._but_for = lru_cache(maxsize=2 ** len(CATEGORIES))(self._of_all)
        self.of = lru_cache(maxsize=1000)(self._of)

    def _of(self, service_id: UUID | None) -> Screen:
        """The screen of one service; of None: what holds for everyone."""
        scope = str(service_id)
        general, own = self._but_for(self._exempt.get(scope, frozenset())), self._own.get(scope)
        return Screen([general, own] if own else [general])

    def _of_all(self, but_for: frozenset[str]) -> Terms:
        return Terms(term for term in self._everyones if term.category not in but_for)


def texts(model_input: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """
    What an input says in words: each text in it, with the name of the input's field that it stands in.

    Left out are addresses, files in themselves, and what the picture is not to show.
    """
    for name, value in model_input.items():
        if name != _AVOIDED:
            field = f"input.{name}" if _NAME.fullmatch(name) else "input"  # a name may be a prompt as well
            for text in (value,) if isinstance(value, str) else _all_texts(value):
                if name == "prompt" or not _FILE.fullmatch(text):
                    yield field, text


def _all_texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON; of what is nested deeper than Python follows, none."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
