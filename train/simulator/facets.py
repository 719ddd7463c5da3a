"""Clarifying questions of the logging policy: what queries leave open, and how one asks for it."""

from typing import NamedTuple


class Facet(NamedTuple):
    """A kind of missing information: the words that show it, and how one asks for it."""

    stems: frozenset[str]
    questions: tuple[str, ...]


def _facet(stems: str, *questions: str) -> Facet:
    return Facet(frozenset(stems.split()), questions)


FACETS = (
    _facet(
        "women woman men man mens womens kid girl boy toddler baby adult teen children child lady "
        "senior student plus petite newborn infant",
        "who is the {query} for?",
        "who are you looking for {query} for?",
    ),
    _facet(
        "red blue black white pink green purple yellow gold silver gray grey brown orange navy "
        "beige color colour rose",
        "which color of {query} do you want?",
        "what color should the {query} be?",
    ),
    _facet(
        "small large mini big xl inch size 2x 3x king queen twin full tall long short oz ft",
        "what size of {query} do you need?",
        "which size do you want?",
    ),
    _facet(
        "symptom treatment cause diagnosis test vaccine prevention diet medication cure surgery "
        "risk recovery infection sign",
        "what do you want to know about {query}?",
        "which aspect of {query} are you interested in?",
    ),
    _facet(
        "california florida texa york new ohio georgia michigan illinoi nc ca ny tx fl pa nj city "
        "county san los chicago vega boston seattle denver london china paris uk usa state",
        "where are you looking for {query}?",
        "which place do you mean for {query}?",
    ),
    _facet(
        "leather cotton wood metal plastic glas wool silk stainles steel wooden rubber",
        "which material should the {query} be made of?",
    ),
    _facet(
        "cheap best price sale cost used free discount review",
        "are you looking to buy {query} or to compare prices?",
    ),
    _facet(
        "iphone samsung nike apple adidas sony lg hp dell lenovo galaxy ipad xbox ps4 nintendo "
        "android disney lego canon nikon ford honda toyota chevy bmw",
        "which brand of {query} do you want?",
        "what brand or device is the {query} for?",
    ),
)
GENERAL_QUESTIONS = (
    "what kind of {query} are you looking for?",
    "which {query} do you mean?",
    "what would you like to know about {query}?",
)
WEAK_QUESTIONS = ("refine your query", "choose one of these", "which?", "{query} {query}")
