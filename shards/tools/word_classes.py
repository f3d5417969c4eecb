"""Words -> candidates for concepts: each word form's class and lemma, from a tagger that read captions.

The tagger (HanTa, a hidden Markov model with its English model in the package) is right about most words in
their context and wrong about some always. So a form's class is decided over all places where it stands, and
where the tagger wavers, by the other forms of the word: `jump`, noun or verb, is a verb, because `jumping` and
`jumps` are frequent verbs.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from shards.parallel import ordered_map
from shards.tools.words import tokens

if TYPE_CHECKING:
    from HanTa.HanoverTagger import HanoverTagger

OBJECT, MOTION, PROPERTY = "object", "motion", "property"
GROUPS = (OBJECT, MOTION, PROPERTY)
_CLASSES = {"NN": OBJECT, "VV": MOTION, "AJ": PROPERTY}
"""How the tags of the British National Corpus begin. Auxiliaries (VB, VD, VH, VM), names (NP) and numerals
(CRD, ORD) are none of ours."""
_OTHER = ""

DECIDED = 0.85
"""Share of a form's occurrences that must be of one class for the tagger alone to decide."""
MAX_TOKENS = 64
"""Of a caption that are tagged; the web has some that are whole pages."""

_CHUNK = 500  # captions that a worker tags at once

_PLACE = ("front", "back", "side", "left", "right", "middle", "top", "background")
_AMOUNT = ("lot", "couple", "number", "piece", "kind", "type", "set")
_PICTURE = ("view", "picture", "photo", "photograph", "image")
STOP_WORDS = frozenset((*_PLACE, *_AMOUNT, *_PICTURE, "other", "same", "such", "own", "way"))
"""Nouns and adjectives that say where, how many, or that this is a picture; lemmas."""

TagCounts = Counter[tuple[str, str]]
"""(form, tag) -> how often."""


@dataclass(frozen=True)
class Candidate:
    """A word that may become a concept, with the forms under which it stands in captions."""

    word: str
    group: str
    forms: tuple[str, ...]
    """Sorted; they belong to no other candidate."""


@lru_cache(maxsize=1)
def _tagger() -> "HanoverTagger":
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")


def tag_captions(
    captions: Sequence[str],
    *,
    processes: int = 1,
    on_captions: Callable[[int], None] = lambda _count: None,
) -> TagCounts:
    """Tag captions and count the tags of every word form; `on_captions` hears about how many were done."""
    total: TagCounts = Counter()
    for chunk, part in zip(
        _chunks(captions), ordered_map(_tag, _chunks(captions), processes, chunk=1), strict=True
    ):
        total.update(part)
        on_captions(len(chunk))
    return total


def _chunks(captions: Sequence[str]) -> Iterator[Sequence[str]]:
    return (captions[start : start + _CHUNK] for start in range(0, len(captions), _CHUNK))


def _tag(captions: Sequence[str]) -> TagCounts:
    counts: TagCounts = Counter()
    for caption in captions:
        if sentence := tokens(caption)[:MAX_TOKENS]:
            counts.update(zip(sentence, _tagger().tag_sent(sentence, taglevel=0), strict=True))
    return counts


def lemma(form: str, tag: str) -> str:
    """The word that `form` is an inflection of when it has this tag; itself where that cannot be."""
    unknown = form not in _tagger().cache  # then both the tag and the lemma are guessed from its letters
    if unknown and tag == "NN2" and not form.endswith("s"):
        return form  # a `skateboarder` is not many skateboards
    found: str = _tagger().analyze(form, pos=tag)[0]
    return found.lower()


def _group(form: str, tag: str) -> str:
    if tag in ("VVB", "VVI") and form.endswith("ed") and form not in _tagger().cache:
        return PROPERTY  # no base form of a verb: the `haired` of `dark haired`
    return _CLASSES.get(tag[:2], _OTHER)


def candidates(counts: Mapping[str, int], tags: TagCounts) -> list[Candidate]:
    """The words of the three groups, most frequent first.

    `counts` says how frequent each form is; forms that `tags` does not have are left out.
    """
    evidence = _evidence(counts, tags)
    settled = {form: decision for form, seen in evidence.items() if (decision := _settle(form, seen)) is not None}
    weight: Counter[tuple[str, str]] = Counter()
    for form, decision in settled.items():
        weight[decision] += counts[form]
    forms: dict[tuple[str, str], list[str]] = defaultdict(list)
    for form, seen in evidence.items():
        group, base = settled[form] if form in settled else _by_other_forms(form, seen, weight)
        if group != _OTHER:
            forms[group, base].append(form)
    found = []
    for (group, base), members in forms.items():
        # named by its lemma, unless that form is of another class: the motion beside the noun `dress` is `dressed`
        name = base if base in members else min(members, key=lambda form: (-counts[form], form))
        if base not in STOP_WORDS and len(name) > 1:
            found.append(Candidate(name, group, tuple(sorted(members))))
    return sorted(found, key=lambda one: (-sum(counts[form] for form in one.forms), one.word))


_Seen = Counter[tuple[str, str]]
"""(group, lemma) of one form -> how often."""


def _evidence(counts: Mapping[str, int], tags: TagCounts) -> dict[str, _Seen]:
    evidence: dict[str, _Seen] = defaultdict(Counter)
    for (form, tag), count in sorted(tags.items()):
        if form in counts:
            group = _group(form, tag)
            base = form if group == _OTHER or (group == PROPERTY and tag[:2] == "VV") else lemma(form, tag)
            evidence[form][group, base] += count
    return evidence


def _shares(seen: _Seen) -> dict[str, float]:
    shares: dict[str, float] = dict.fromkeys((*GROUPS, _OTHER), 0.0)
    for (group, _base), count in seen.items():
        shares[group] += count / seen.total()
    return shares


def _base(seen: _Seen, group: str) -> tuple[str, str]:
    return min((key for key in seen if key[0] == group), key=lambda key: (-seen[key], key))


def _settle(form: str, seen: _Seen) -> tuple[str, str] | None:
    """The form's group and lemma, None where the tagger wavers."""
    shares = _shares(seen)
    group = max(shares, key=lambda name: shares[name])
    if group == _OTHER or shares[group] >= DECIDED:
        return _base(seen, group)
    if form.endswith("ing"):  # only a participle wavers so: `surfing`, `swimming`, but not `building`
        return MOTION, lemma(form, "VVG")
    return None


def _by_other_forms(form: str, seen: _Seen, weight: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    shares = _shares(seen)
    possible = [_base(seen, group) for group in GROUPS if shares[group] > 1 - DECIDED]
    if not possible:
        return _OTHER, form
    return max(possible, key=lambda key: (weight.get(key, 0), shares[key[0]]))
