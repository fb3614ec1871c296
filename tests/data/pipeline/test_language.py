"""Language identification on the first article of the Universal Declaration of Human Rights in nine languages."""

import pytest

from plait.data.pipeline.language import KNOWN, language_of, share_in
from plait.data.pipeline.recipe import PAPER_LANGUAGES

ARTICLE_1 = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et "
    "de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de "
    "consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en "
    "geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا "
    "عقلاً وضميراً وعليهم أن يعامل بعضهم بعضاً بروح الإخاء.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, לפיכך חובה עליהם לנהוג איש "
    "ברעהו ברוח של אחווה.",
}


@pytest.mark.parametrize("language", PAPER_LANGUAGES)
def test_the_languages_of_the_paper(language: str) -> None:
    found, score = language_of(ARTICLE_1[language])
    assert found == language
    assert score > 0.65


@pytest.mark.parametrize("language", ["de", "ar"])
def test_code_and_addresses_do_not_count(language: str) -> None:
    code = "```python\n" + "for item in the_list_of_things: print(item)\n" * 40 + "```\n"
    text = f"{ARTICLE_1[language]}\n\n{code}\nhttps://www.example.com/this/is/the/english/page"
    assert language_of(text)[0] == language


def test_a_long_text_is_looked_at_in_four_places() -> None:
    filler = ARTICLE_1["fr"] + "\n"
    assert language_of(ARTICLE_1["en"] + "\n" + filler * 200)[0] == "fr"


def test_no_words_no_language() -> None:
    assert language_of("12 + 34 = 46\n\n```\ncode\n```") == ("", 0.0)


def test_known_languages_hold_those_of_the_paper() -> None:
    assert set(PAPER_LANGUAGES) <= set(KNOWN)
    assert len(set(KNOWN)) == len(KNOWN)


@pytest.mark.parametrize(("own", "other"), [("en", "de"), ("ar", "en"), ("nl", "fr")])
def test_half_translated_texts_have_a_share(own: str, other: str) -> None:
    assert share_in("\n\n".join([ARTICLE_1[own]] * 5), own) == 1.0
    mixed = "\n\n".join([ARTICLE_1[own], ARTICLE_1[other]] * 4)
    assert 0.3 < share_in(mixed, own) < 0.7
    assert share_in("\n\n".join([ARTICLE_1[other]] * 5), own) == 0.0


def test_where_no_paragraph_says_anything_all_is_well() -> None:
    assert (
        share_in(
            "Short.\n\n12 34\n\n```\nfor i in range(10): print(i) # a long line of a programming language\n```", "en"
        )
        == 1.0
    )
    assert share_in("", "en") == 1.0


def test_long_texts_are_sampled_from_all_over() -> None:
    text = "\n\n".join([ARTICLE_1["en"]] * 300 + [ARTICLE_1["fr"]] * 300)
    assert 0.3 < share_in(text, "en") < 0.7
