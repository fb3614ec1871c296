"""Personal data out of a text, where a recipe asks for it: addresses of mail and networks, phone and card numbers."""

from __future__ import annotations

import ipaddress
import re

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]\d)")
_PHONE = re.compile(r"(?<![\w+])\+\d{1,3}(?:[ ./()-]{0,2}\d){7,12}(?!\d)")
_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)")
_RESERVED_MAIL = re.compile(r"@(?:[\w-]+\.)*(?:example|test|invalid|localhost)(?:\.(?:com|org|net))?$", re.IGNORECASE)


def scrub_pii(text: str) -> tuple[str, int]:
    """The text with `<EMAIL>`, `<IP>`, `<PHONE>` and `<CARD>` in their places, and how many there were.

    Addresses that belong to nobody (example.com, 192.168.0.1) stay: technical text is full of them.
    """
    found = 0

    def place(kind: str, is_personal: bool, original: str) -> str:
        nonlocal found
        found += is_personal
        return f"<{kind}>" if is_personal else original

    text = _EMAIL.sub(lambda m: place("EMAIL", not _RESERVED_MAIL.search(m[0]), m[0]), text)
    text = _CARD.sub(lambda m: place("CARD", _is_card(m[0]), m[0]), text)
    text = _IPV4.sub(lambda m: place("IP", _is_public(m[0]), m[0]), text)
    text = _PHONE.sub(lambda m: place("PHONE", True, m[0]), text)
    return text, found


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_card(written: str) -> bool:
    """The check digit of ISO/IEC 7812 (Luhn), and not all one digit."""
    digits = [int(d) for d in written if d.isdigit()]
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return len(digits) >= 13 and sum(doubled) % 10 == 0 and len(set(digits)) > 1
