"""Made-up documents that read like prose, in two languages, and a build of them with what is planted."""

import random
from collections.abc import Callable

import pytest

pytest.importorskip("datatrove", reason="the data extra is not installed")
pytest.importorskip("py3langid", reason="the data extra is not installed")

_ENGLISH = (
    "The|A|This|Every", "old|quiet|second|broken|careful|northern|public|small|famous|early",
    "harbour|teacher|library|engine|garden|council|market|railway|doctor|painter|committee|village",
    "found|described|repaired|visited|measured|explained|remembered|refused|carried|followed",
    "the|another|that|one", "bridge|letter|winter|answer|machine|river|meeting|picture|journey|building|field",
    "near the|before the|after a|without the|under the|because of the", "storm|election|hospital|museum|school|war",
    "and|but|while|so", "it was|they were|nobody was|some people were", "late|certain|pleased|afraid|ready|away|tired",
    "for|in|with|about", "many years|the evening|a good reason|the summer|its own sake|three hours",
)  # fmt: skip
_GERMAN = (
    "Der|Ein|Dieser|Jeder", "alte|ruhige|zweite|kaputte|kleine|berühmte|frühe|neue",
    "Hafen|Lehrer|Garten|Markt|Arzt|Maler|Ausschuss|Verein|Direktor|Nachbar",
    "fand|beschrieb|reparierte|besuchte|vermaß|erklärte|vergaß|verfolgte",
    "die|eine|jene", "Brücke|Antwort|Maschine|Sitzung|Reise|Frage|Zeitung|Karte|Schule",
    "in der Nähe der|vor der|nach der|ohne die|wegen der", "Wahl|Mauer|Stadt|Kirche|Fabrik|Grenze",
    "und|aber|während|so dass", "es war|niemand war|man war", "spät|sicher|zufrieden|bereit|müde|überrascht",
    "für|in|mit|über", "viele Jahre|den Abend|drei Stunden|einen guten Grund",
)  # fmt: skip


def sentences(seed: object, n: int, language: str = "en") -> list[str]:
    """n sentences; other seeds give others."""
    draw = random.Random(str(seed))
    parts = _GERMAN if language == "de" else _ENGLISH
    return [" ".join(draw.choice(part.split("|")) for part in parts) + "." for _ in range(n)]


def prose(seed: object, n: int = 40, language: str = "en") -> str:
    """n sentences in paragraphs of four."""
    lines = sentences(seed, n, language)
    return "\n\n".join(" ".join(lines[k : k + 4]) for k in range(0, n, 4)) + "\n"


@pytest.fixture(scope="session")
def make_prose() -> Callable[..., str]:
    return prose
