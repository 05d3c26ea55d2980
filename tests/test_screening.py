"""The screen as pure functions: what is a term, what it is found in, and what nothing costs too much."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import screening
from pipeline.cli.screens import _read, _text
from pipeline.screening import CATEGORIES, EVERYONE, Screen, Screens, Term, Terms, normal, words
from pipeline.store.tables import new_id

TERMS = ("naked", "nud*", "self-harm", "severed head*", "裸体", "나체*", "голый", "हत्या", "beyoncé")


def screen(*terms: str, category: str = "adult") -> Screen:
    """A screen of these."""
    return Screen([Terms(Term(category, normal(term)) for term in terms)])


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("a naked man", "naked"),
        ("NAKED", "naked"),
        ("naked_woman, 1girl", "naked"),  # as tags are written
        ("naked.", "naked"),
        ("snaked", None),
        ("nakedness", None),
        ("nudes", "nud*"),
        ("denuded", None),
        ("self harm", "self harm"),
        ("self --\n harm", "self harm"),
        ("selfharm", None),
        ("harm self", None),
        ("two severed heads on poles", "severed head*"),
        ("severed", None),
        ("ｎａｋｅｄ", "naked"),  # full width
        ("𝓃𝒶𝓀𝑒𝒹", "naked"),
        ("🅽🅰🅺🅴🅳", "naked"),
        ("ɴᴀᴋᴇᴅ", "naked"),
        ("náḱèd", "naked"),
        ("n̷a̷k̷e̷d̷", "naked"),
        ("na\u00adk\u200bed", "naked"),
        ("n\u0430ked", "naked"),  # one Cyrillic letter
        ("\u041d\u0410\u041a\u0415D", None),  # 'Н' looks like 'H'
        ("п\u0430k\u0435d", None),
        ("n\u0430k\u0435d жук", "naked"),  # a disguised word in a text that is Russian
        ("a n4ked man", "naked"),
        ("N4K3D", "naked"),
        ("4naked", None),
        ("nak3d", "naked"),
        ("se1f harm", "self harm"),
        ("n a k e d", "naked"),
        ("N-A-K-E-D!", "naked"),
        ("n.a.k.e.d.", "naked"),
        ("n_4_k_e_d", "naked"),
        ("it's a n a k e d man", "naked"),
        ("n\u0430 k e d", None),
        ("n \u0430 k e d", "naked"),
        ("N.A.K.E.D.", None),  # an abbreviation, for all we know
        ("n - a - k - e - d", None),
        ("голый король", "голый"),
        ("ГОЛЫЙ", "голый"),
        ("一个裸体女人", "裸体"),
        ("裸 体", "裸体"),
        ("体裸", None),
        ("나체를", "나체*"),
        ("एक हत्या", "हत्या"),
        ("एक हत", None),  # the same letters without their vowel signs
        ("Beyonce on stage", "beyonce"),
        ("", None),
        ("a lighthouse at dawn", None),
    ],
)
def test_a_term_is_found_as_a_whole_word_however_it_is_written(text: str, term: str | None) -> None:
    """What a person reads is what counts, not the code points; and half a word is another word."""
    assert {found.text for found in screen(*TERMS).terms(text)} == ({normal(term)} if term else set())


@pytest.mark.parametrize(
    "text",
    [
        "J. R. R. Tolkien, plan a b c, x x x",
        "the U.S.A. and N.U.D.E. Ltd.",
        "an M4A1, 1girl, mp3s, 1024x768, a 3d k1 and f-15e",
        "I a m 9 years old",
        "o x o",
    ],
)
def test_what_people_abbreviate_and_count_is_no_disguise(text: str) -> None:
    """Whoever asks for a lighthouse in a 4 x 3 frame must not be refused."""
    assert not screen(*TERMS, "usa", "xxx", "nude", "gun", "sex", "ass", "jrr").terms(text)


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=12), st.sampled_from(" .-_"), st.booleans())
def test_a_word_that_is_spelled_out_is_read_as_that_word(word: str, between: str, after_article: bool) -> None:
    """Whatever stands between its letters, and before it; but a row of one letter is no word."""
    said = f"{'in a ' if after_article else ''}{between.join(word)}, please"
    found = {one.text for one in screen(word).terms(said)}
    assert found == ({word} if len({*word}) > 1 else set())


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8), max_size=8))
def test_plain_words_are_read_once_and_as_they_are(said: list[str]) -> None:
    """What is in no disguise costs nothing more, and cannot be mistaken."""
    assert screening.readings(" ".join(said)) == [said]


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=8), st.data())
def test_digits_within_a_word_are_read_as_letters_and_those_at_its_ends_are_not(word: str, data: st.DataObject) -> None:
    """`n4ked` is written to get by; `3d` and `mp3` are not."""
    look = {"o": "0", "i": "1", "l": "1", "e": "3", "a": "4", "s": "5", "t": "7"}
    letter = data.draw(st.sampled_from(sorted(look)))
    inner = word[1:-1].replace(letter, look[letter])
    assert screen(word).terms(word[0] + inner + word[-1])
    assert not screen(letter + word).terms(look[letter] + word)


def test_letters_that_look_latin_are_russian_in_a_russian_text() -> None:
    """'рот' is a mouth, though it looks like 'pot'; alone it may be either, and is taken for the disguise."""
    assert not screen("pot").terms("рот и жук")
    assert screen("pot").terms("рот")
    assert screen("рот").terms("рот и жук")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("  Naked ", "naked"), ("SELF-HARM", "self harm"), ("Nud*", "nud*"), ("裸体*", "裸体"), ("Straße", "strasse")],
)
def test_a_term_has_one_spelling(given: str, kept: str) -> None:
    """Else the same one stood twice on a list, and could be removed only as it was typed."""
    assert normal(given) == kept


@pytest.mark.parametrize("wrong", ["", " ", "a", "*", "...", "ab*", "na*ed", "a" * 101, "ﷺ" * 30, "\u200b"], ids=repr)
def test_what_would_refuse_everything_is_no_term(wrong: str) -> None:
    """A slip of the hand must not stop all jobs."""
    with pytest.raises(ValueError, match=r"must|may"):
        normal(wrong)


@given(st.text(max_size=40))
def test_a_term_is_kept_as_it_is_found(text: str) -> None:
    """Its normal spelling is a term, the same one, and found in what it was made of."""
    try:
        term = normal(text)
    except ValueError:
        return
    assert normal(term) == term
    assert screen(text).terms(f"before {text.removesuffix('*')} after") if "*" not in text else True


@given(st.lists(st.sampled_from(["red", "redder", "fox", "foxes", "a", "in", "the"]), max_size=12), st.data())
def test_terms_are_found_where_a_plain_search_finds_them(said: list[str], data: st.DataObject) -> None:
    """Looking for all at once finds what looking for each does."""
    terms = data.draw(st.lists(st.sampled_from(["red", "red*", "red fox", "in the", "the fox*", "fox a", "foxes"])))
    expected = set()
    for term in terms:
        parts, open_ended = term.removesuffix("*").split(), term.endswith("*")
        for at in range(len(said) - len(parts) + 1):
            there = said[at : at + len(parts)]
            if there[:-1] == parts[:-1] and (there[-1].startswith(parts[-1]) if open_ended else there[-1] == parts[-1]):
                expected.add(term)
    assert {one.text for one in Terms(Term("hate", term) for term in terms).among(said)} == expected


@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    """Callers send everything, lone surrogates included; a form that means the same reads the same."""
    screening.readings(text)
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert words(unicodedata.normalize("NFC", text)) == words(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0300\u0323" * 200_000,
        "क" + "\u094d\u093c" * 200_000,
        "жк" * 200_000,
        "self " * 50_000,
        "a 1 " * 50_000,
        "a b " + "1 " * 100_000,
        "a4b" * 50_000,
        "\ufdfa" * 80_000,
    ],
    ids=["accents", "signs", "one word", "one beginning", "letters", "a row", "digits", "ligatures"],
)
def test_no_text_costs_more_than_its_length_is_worth(text: str) -> None:
    """Sorting marks takes Python the square of their number: as many as these, longer than any test may."""
    assert not screen("naked", "self harm much").terms(text)


def test_every_text_of_an_input_is_screened_but_files_and_what_is_to_be_left_out() -> None:
    """Models take more than a prompt; an address is no words, and a picture without nudity names it."""
    asked = {
        "prompt": "a naked man",
        "negative_prompt": "nude",
        "scenes": [{"text": "Nudes!"}, {"text": "a fox"}],
        "image": "https://example.com/nude/1.png",
        "mask": "data:image/png;base64,nude+nude",
        "style": "vivid",
        "a naked man": "nude",
    }
    found = screen(*TERMS).problems(asked)
    assert found == {"input.prompt": {"adult"}, "input.scenes": {"adult"}, "input": {"adult"}}
    assert screen(*TERMS).problems({"prompt": "https://example.com/nude"}) == {"input.prompt": {"adult"}}


def test_a_service_has_its_own_terms_beside_those_of_all() -> None:
    """What one caller's customers may not ask for others may."""
    shop, other = new_id(), new_id()
    screens = Screens([(EVERYONE, "hate", "white power"), (str(shop), "adult", "naked")])
    text = "naked white power"
    assert {one.category for one in screens.of(shop).terms(text)} == {"adult", "hate"}
    assert {one.category for one in screens.of(other).terms(text)} == {"hate"}
    assert not Screens().of(shop)


def test_a_service_may_be_exempt_from_what_holds_for_all_but_not_from_its_own() -> None:
    """A museum shows nudes; its own list of other terms is its own."""
    museum, other = new_id(), new_id()
    rows = [(EVERYONE, "adult", "naked"), (EVERYONE, "hate", "white power"), (str(museum), "adult", "hentai")]
    screens = Screens(rows, [(str(museum), "adult"), (str(museum), "violence")])
    text = "naked white power hentai"
    assert {one.text for one in screens.of(museum).terms(text)} == {"white power", "hentai"}
    assert {one.text for one in screens.of(other).terms(text)} == {"naked", "white power"}
    assert {one.text for one in screens.of(None).terms(text)} == {"naked", "white power"}


@pytest.mark.parametrize("category", CATEGORIES)
def test_each_category_has_an_example_that_can_be_loaded(category: str) -> None:
    """They ship with the product, and lighthouses pass all of them."""
    terms = _read(_text(category, None))
    assert len(terms) >= 10
    assert not screen(*terms).terms("A lighthouse on a cliff at dusk, in the manner of an old postcard")
