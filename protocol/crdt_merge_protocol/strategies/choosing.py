"""Which artefacts a merge uses, and which contributions have to stay out for want of one (STRATEGIES 1.10).

Pure: equal sets of operations choose equally on all nodes. Of several artefacts the newest counts, by the
depth of its operation, then its tag; never the one with the smallest digest, which can be ground. Who may
speak decides first: of one contribution whoever contributed it, of a set of contributions an administrator,
or whom the policy names by digest. What is of another base or another set is stale and never used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import used_root

from .artefacts import Artefact, ArtefactNeed, in_order
from .contract import Strategy
from .delegation import FALLBACK, INNER, NONE, parameters_of
from .parameters import Value
from .registry import ALIASES, get, names

ARTEFACT_PARAMETER: Final = "artefact"
"""Parameter with the digest of the set-bound artefact to use, in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An artefact that somebody contributed; valid in itself."""

    artefact: Artefact
    author: bytes = b""
    order: tuple[int, bytes] = (0, b"")
    """(depth, tag) of its operation: the greatest is the newest."""
    is_admin: bool = True
    """Whether its author is an administrator of the group. Offline everybody is."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why an artefact that is valid in itself is not used."""

    reason: str
    is_stale: bool = False
    """Made for another base or another set of contributions."""


NEWER: Final = Unfit("there is a newer one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What goes into a merge."""

    models: tuple[bytes, ...]
    """Digests of the contributions that have all they need, sorted."""
    artefacts: tuple[Artefact, ...]
    """In canonical order; none twice."""
    lacking: Mapping[bytes, str] = field(default_factory=dict)
    """Why other contributions are set aside, by their digest."""
    unfit: Mapping[bytes, Unfit] = field(default_factory=dict)
    """Why other artefacts of a type that is needed are not used, by their digest."""


def needs_of(strategy: Strategy, params: Mapping[str, Value] | Mapping[str, str]) -> tuple[ArtefactNeed, ...]:
    """Return what artefacts a strategy works with, and those that its parameters name, by type.

    Those of the others (``fallback``, ``inner``) set no contribution aside: they are optional here.
    """
    needs = {need.type: need for need in strategy.artefacts_for(params)}
    for other in named_strategies(params, strategy):
        for need in other.artefacts:
            needs.setdefault(need.type, ArtefactNeed(need.type, is_optional=True))
    return tuple(needs[type_] for type_ in sorted(needs))


def named_artefact(params: Mapping[str, Value] | Mapping[str, str]) -> str:
    """Return the digest of the set-bound artefact that the parameters name, in hex, or an empty text."""
    return str(params.get(ARTEFACT_PARAMETER, ""))


def whole_recipe(policy: Policy) -> bytes:
    """Return what of a policy decides the output, the versions of the strategies that it names included.

    A policy holds the version of its own strategy; a stand-in whose bits changed must change the key as well.
    Those of version 1 go without saying.
    """
    every = named_strategies(dict(policy.params), get(policy.strategy)) if policy.strategy in names() else ()
    named = {each.id: each.version for each in every if each.version > 1}
    return policy.recipe() + (encode([list(item) for item in sorted(named.items())]) if named else b"")


def needs_stand_in(strategy: Strategy, params: Mapping[str, str] | None = None) -> bool:
    """Tell whether a group's policy with this strategy has to name a stand-in (STRATEGIES 1.12).

    What one contribution lacks sets that one aside; what the set lacks, or too few and too many of them,
    would end every resolve. A strategy with a rule of its own for either says so by taking the parameter.
    A stand-in that is no better needs one in turn.

    Args:
        strategy: The policy's.
        params: Its parameters, as texts: the stand-ins that they name are looked at instead.
    """
    stand_in = (params or {}).get(FALLBACK, NONE)
    if params and stand_in != NONE:
        return needs_stand_in(get(stand_in), {k: str(v) for k, v in parameters_of(params, FALLBACK).items()})
    required = [need for need in strategy.artefacts if not need.is_optional]
    is_demanding = (
        strategy.k_min > 1
        or strategy.k_max is not None
        or any(need.scope == "set" for need in required)
        or (not required and type(strategy).unmet is not Strategy.unmet)
    )
    return is_demanding and any(parameter.name == FALLBACK for parameter in strategy.parameters)


def choose(
    needs: Sequence[ArtefactNeed],
    offers: Iterable[Offer],
    authors: Mapping[bytes, Collection[bytes]],
    *,
    base_content: bytes,
    named: str = "",
    sets_aside: bool,
) -> Choice:
    """Return what a merge of these contributions uses.

    Contributions that lack what they need go first; only then is the set known that set-bound artefacts must
    have been made for.

    Args:
        needs: As :func:`needs_of` returns them.
        offers: All that is visible and valid in itself; of other types too.
        authors: Who contributed each model, by its digest.
        base_content: Content id of the base, empty without one.
        named: Digest of the set-bound artefact to use, in hex; empty: the newest of an administrator.
        sets_aside: True in a group; False offline, where what is lacking is an error of its own.
    """
    ranked = sorted(offers, key=lambda offer: (*offer.order, offer.artefact.digest), reverse=True)
    unfit: dict[bytes, Unfit] = {}
    chosen: dict[tuple[str, bytes], Artefact] = {}
    lacking: dict[bytes, str] = {}
    for need in (need for need in needs if need.scope == "contribution"):
        found = _of_contributions(need, ranked, authors, base_content, unfit)
        chosen |= {(need.type, subject): artefact for subject, artefact in found.items()}
        if not need.is_optional and sets_aside:
            reason = f"it has no {need.type}, which the group's strategy needs"
            lacking |= {digest: reason for digest in authors if digest not in found}
    models = tuple(sorted(authors.keys() - lacking.keys()))
    chosen = {key: artefact for key, artefact in chosen.items() if key[1] not in lacking}
    of_sets = [need for need in needs if need.scope == "set"]
    root = used_root(models) if of_sets else b""
    for need in of_sets:
        artefact = _of_set(need, ranked, unfit, root=root, base_content=base_content, named=named)
        if artefact is not None:
            chosen[need.type, b""] = artefact
    used = {artefact.digest for artefact in chosen.values()}
    return Choice(
        models=models,
        artefacts=in_order(chosen.values()),
        lacking=lacking,
        unfit={digest: why for digest, why in unfit.items() if digest not in used},
    )


def _of_contributions(
    need: ArtefactNeed,
    ranked: Sequence[Offer],
    authors: Mapping[bytes, Collection[bytes]],
    base_content: bytes,
    unfit: dict[bytes, Unfit],
) -> dict[bytes, Artefact]:
    """Return the artefact of one type for each contribution that has one, by the contribution's digest."""
    found: dict[bytes, Artefact] = {}
    for offer in ranked:
        artefact = offer.artefact
        if artefact.type != need.type:
            continue
        subject = artefact.subject
        if subject not in authors:
            why = Unfit(f"contribution {subject.hex()[:12]}, which it is of, is not used")
        elif offer.author not in authors[subject]:
            why = Unfit(f"its author did not contribute {subject.hex()[:12]}")
        elif artefact.base not in (b"", base_content):
            why = _other_base(artefact)
        elif subject in found:
            why = NEWER
        else:
            found[subject] = artefact
            continue
        unfit.setdefault(artefact.digest, why)
    return found


def _of_set(
    need: ArtefactNeed,
    ranked: Sequence[Offer],
    unfit: dict[bytes, Unfit],
    *,
    root: bytes,
    base_content: bytes,
    named: str,
) -> Artefact | None:
    """Return the artefact of one type for the whole set, or None."""
    found: Artefact | None = None
    for offer in ranked:
        artefact = offer.artefact
        if artefact.type != need.type:
            continue
        if named and artefact.digest.hex() != named:
            why = Unfit(f"the policy names {named[:12]}")
        elif not named and not offer.is_admin:
            why = Unfit("its author is no administrator and the policy does not name it")
        elif artefact.set_root != root:
            why = Unfit("it was made for another set of contributions", is_stale=True)
        elif artefact.base not in (b"", base_content):
            why = _other_base(artefact)
        elif found is not None:
            why = NEWER
        else:
            found = artefact
            continue
        unfit.setdefault(artefact.digest, why)
    return found


def _other_base(artefact: Artefact) -> Unfit:
    return Unfit(f"it was made for another base, {artefact.base.hex()[:12]}", is_stale=True)


def named_strategies(
    params: Mapping[str, Value] | Mapping[str, str], strategy: Strategy | None = None
) -> Iterator[Strategy]:
    """Yield every strategy that a parameter names, by its id or an alias, at any depth.

    Args:
        params: Texts or values.
        strategy: Whose they are: those that it names by default are among them then.
    """
    texts = {name: str(value) for name, value in params.items()}
    named = texts if strategy is None else _named_by(strategy, texts)
    known = {*names(), *ALIASES}
    for name, text in named.items():
        if name.rpartition(".")[2] in (FALLBACK, INNER) and text in known:
            yield get(text)


def _named_by(strategy: Strategy, texts: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """Return the parameters of a strategy that name strategies, dotted, and those of the strategies named."""
    found: dict[str, str] = {}
    for parameter in strategy.parameters:
        if parameter.type != "strategy":
            continue
        name = f"{prefix}{parameter.name}"
        found[name] = text = texts.get(name, parameter.default)
        if text in ALIASES or text in names():
            found |= _named_by(get(text), texts, f"{name}.")
    return found
