"""Which texts hold personal data: addresses and numbers that lead to a person.

Patterns, so names and streets are not found, nor numbers in words; k-anonymity is what protects
those. Knows nothing of logs.
"""

import ipaddress
import re

from engine.formats.text import visible

# To be raised when texts are normalised or refused in another way: runs are mined again then.
RULES_VERSION = 1

# With a space before or after the sign only where a domain follows; "x@home" is as good as one.
_EMAIL = re.compile(
    r"\S@\S+\.\w|[a-z0-9][._%+-]*@[a-z][a-z0-9-]+"
    r"|[a-z0-9][._%+-]* ?@ ?[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}"
)
# 9 digits and more with the separators people type: +1 (212) 555-0143, 030 12 34 56 78, and with
# spaces around one, 212 - 555 - 0143, unless it parts years: 2023 - 2024, 2023/24 - 2024/25. Some
# harmless lists of numbers go, too.
_SIGNS = r"\-/_.,:;+|*#=~'\u2019\u00b7\u2010-\u2015\u2212"
_YEAR = r"(?:19|20)\d\d"
_APART = rf"(?:(?<!{_YEAR})(?<!{_YEAR}[{_SIGNS}]\d\d) [{_SIGNS}] | [{_SIGNS}] (?!{_YEAR}(?!\d)))"
_PHONE = re.compile(rf"(?<!\d)\+?\d(?:(?:[ (){_SIGNS}]{{0,2}}|{_APART})\d){{8,}}(?!\d)")
_SEASON = rf"{_YEAR}(?:[/\-]\d\d)?"
_YEARS = re.compile(rf"{_SEASON}(?:\D+{_SEASON})*")  # 2019, 2020, 2021; 2023/24, 2024/25
_THOUSANDS = re.compile(r"\d{1,3}(?:([,'\u2019])\d{3})(?:\1\d{3})*")  # 100,000,000
_LONG_NUMBER = re.compile(r"\d{8,}")  # accounts, orders, cards
# 9123 4567, where that is all or said to be a phone: elsewhere it is two products or ports.
_LIFE_OR_DAY = r"(?:1\d|20)\d\d.(?:(?:1\d|20)\d\d|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))"
_EIGHT_DIGITS = re.compile(
    r"(?:(?:.* )?(?:call|fax|mobile|phone|tel|whatsapp)[.:]? )?"
    rf"(?!{_LIFE_OR_DAY}\Z)\d{{4}}[ \-\u2010-\u2015\u2212]\d{{4}}"
)
_DOTTED_QUAD = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w.])")


def kind_of_personal_data(text: str) -> str | None:
    """Returns "email", "long_number" or "ip_address" if a normalised text holds one, else None.

    What cannot be seen, such as soft hyphens, hides nothing.
    """
    seen = text if text.isascii() else visible(text)
    if "@" in seen and _EMAIL.search(seen):
        return "email"
    if _LONG_NUMBER.search(seen) or any(map(_leads_to_a_person, _PHONE.finditer(seen))):
        return "long_number"
    if _EIGHT_DIGITS.fullmatch(seen):
        return "long_number"
    if any(_is_of_somebody(match[0]) for match in _DOTTED_QUAD.finditer(seen)):
        return "ip_address"
    return None


def _leads_to_a_person(number: re.Match[str]) -> bool:
    return not (_YEARS.fullmatch(number[0]) or _THOUSANDS.fullmatch(number[0]))


def _is_of_somebody(address: str) -> bool:
    """Returns whether an address is a public one; those of home networks are the same anywhere."""
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False
