"""A strategy through the state: three replicas, real signed operations, joins in every order and grouping.

Each replica is an author with a key and a log of its own. Between them they contribute the models and the
artefacts that the strategy needs. One model is contributed twice, by two authors (R9), and one is removed
again after another replica has seen it (R10). Nothing is simplified below that: digests, the choice of
artefacts, the resolve key and the seed are those of a node. A replica hands its models to the merge in the
order in which they came to it, those that came twice twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, Schema, TensorSpec, blob_digest_of
from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.operations import Add, Kind, Operation, Remove, SignedOperation, sign_operation
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.strategies.artefacts import HEADER_TENSOR, encode_header
from crdt_merge_protocol.strategies.choosing import Choice, Offer, choose, needs_of, needs_stand_in
from crdt_merge_protocol.strategies.contract import Strategy, exact_weights
from crdt_merge_protocol.strategies.reference import ArtefactArrays, merge_arrays
from crdt_merge_protocol.view import View, view_of

from .artefacts import Synthetic, synthetic
from .cases import params_for, takes_base
from .models import Gap, Model, Models, rounded, specs_of, widest

REPLICAS: Final = 3
STAND_IN: Final = "weight_average"
"""Named where a policy has to name one, and never used here: see :meth:`Group.resolve`."""
Meaning = tuple[bytes, View, bytes]
"""Sync root, view, resolve key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Through:
    """Which laws hold through the state, and how far apart the outputs of the replicas are."""

    contributions: int
    """Distinct models that are merged in the end."""
    operations: int
    is_commutative: bool
    """Joining two states either way gives equal roots, views and resolve keys."""
    is_associative: bool
    is_idempotent: bool
    """So does joining a state with itself, or with one that it holds already."""
    is_converged: bool
    """All replicas end with one root, one view, one resolve key."""
    replicas: Gap
    """The CRDT gap: between the outputs of the farthest two replicas."""
    determinism: str

    @property
    def is_success(self) -> bool:
        """Whether every law holds, and all outputs are equal to the bit."""
        return (
            self.is_commutative
            and self.is_associative
            and self.is_idempotent
            and self.is_converged
            and self.replicas.is_bitwise
        )


@dataclass(frozen=True, slots=True)
class Replica:
    """A state, and which contributions came to it in which order, repetitions included."""

    state: CRDTMergeState
    arrivals: tuple[bytes, ...]
    """Contribution digests."""

    def join(self, other: Replica) -> Replica:
        """Return this replica after it has taken in all that another one holds."""
        state = self.state.copy()
        state.join(other.state)
        return Replica(state, self.arrivals + other.arrivals)


class _Author:
    """Signs operations into its own state."""

    def __init__(self, genesis: Genesis, key: NodeKey) -> None:
        self.key = key
        self.replica = Replica(CRDTMergeState(genesis), ())
        self._seq = 0
        self._prev: bytes | None = None

    def add(self, slot: str, type_: str, content: bytes) -> bytes:
        """Contribute; return the tag."""
        add = Add(slot=slot, type=type_, content=content, weight=WEIGHT_ONE, payload=None)
        signed = self._emit(Kind.ADD, add.encode(), ())
        self.replica = replace(self.replica, arrivals=(*self.replica.arrivals, add.digest))
        return signed.id

    def remove(self, tag: bytes) -> None:
        """Take back a contribution of its own."""
        self._emit(Kind.REMOVE, Remove(targets=(tag,)).encode(), (tag,))

    def _emit(self, kind: int, body: bytes, refs: tuple[bytes, ...]) -> SignedOperation:
        state = self.replica.state
        operation = Operation(
            group=state.group,
            author=self.key.node_id,
            log=bytes(16),
            seq=self._seq,
            prev=self._prev,
            deps=state.choose_deps(),
            refs=refs,
            kind=kind,
            body=body,
        )
        # Through the bytes, so that the signature is checked as for an operation from a peer.
        signed = SignedOperation.parse(sign_operation(operation, self.key).wire())
        state.apply(signed)
        self._seq, self._prev = self._seq + 1, signed.id
        return signed


class Group:
    """A group for one strategy: its genesis, what was contributed, and real merges of what a state shows."""

    def __init__(self, strategy: Strategy, models: Models, count: int, roles: Sequence[str]) -> None:
        self._strategy = strategy
        self._base = models.base if takes_base(strategy) else None
        self._models: dict[bytes, Model] = {}
        self._artefacts: dict[bytes, ArtefactArrays] = {}
        contents = [self._store_model(models[number]) for number in range(count + 1)]
        withdrawn = contents.pop()
        params = dict(params_for(strategy, _model_digest(contents[0])))
        if needs_stand_in(strategy):
            params["fallback"] = STAND_IN
        self._keys = [NodeKey(bytes([number + 1]) * 32) for number in range(REPLICAS)]
        base = None if self._base is None else _manifest(self._base).content
        self.policy = Policy(
            strategy=strategy.id,
            strategy_version=strategy.version,
            schema=Schema.of(specs_of(models[0])).id,
            params=sorted_params(strategy.normalise(params)),
            base=base,
            dtype="F32",
        )
        admin = self._keys[0].node_id
        self.genesis = Genesis(
            nonce=bytes(16), name="laws", admins=(admin,), quorum=1, is_open=True, policy=self.policy
        )
        names = [_model_digest(content) for content in contents]
        made = synthetic(strategy, [models[number] for number in range(count)], names, roles)
        self.replicas = self._contribute(contents, withdrawn, made)

    def _contribute(
        self, contents: Sequence[bytes], withdrawn: bytes, made: Sequence[Synthetic]
    ) -> list[Replica]:
        """Let each author sign its share; return what each holds before any two meet, but for one glimpse."""
        authors = [_Author(self.genesis, key) for key in self._keys]
        tag = authors[1].add("withdrawn", "model", withdrawn)
        glimpse = authors[1].replica
        authors[0].replica = authors[0].replica.join(glimpse)
        authors[1].remove(tag)
        for number, content in enumerate(contents):
            authors[number % REPLICAS].add(f"model-{number}", "model", content)
        authors[2].add("again", "model", contents[0])
        for number, item in enumerate(made):
            # Of a set only an administrator may speak, of a contribution its author.
            author = authors[0 if item.subject is None else item.subject % REPLICAS]
            author.add(f"artefact-{number}", item.type, self._store_artefact(item))
        return [author.replica for author in authors]

    def _store_model(self, model: Model) -> bytes:
        content = _manifest(model).content
        self._models[_model_digest(content)] = model
        return content

    def _store_artefact(self, item: Synthetic) -> bytes:
        header = np.frombuffer(encode_header(item.header), np.uint8)
        content = _manifest({**item.tensors, HEADER_TENSOR: header}).content
        name = Add(slot="", type=item.type, content=content, weight=WEIGHT_ONE, payload=None).digest
        self._artefacts[name] = item.named(name)
        return content

    def meaning(self, replica: Replica) -> Meaning:
        """Return what replicas must agree on; the view by its definition, from the operations alone."""
        state = replica.state
        return state.sync_root, view_of(self.genesis, state.causal()), self._key(self._choice(state))

    def resolve(self, replica: Replica) -> tuple[Model, str]:
        """Return what a replica writes, and the class of determinism of that merge.

        Raises:
            ResolveError: The merge is refused, or a stand-in would be computed.
        """
        choice = self._choice(replica.state)
        names = [name for name in replica.arrivals if name in set(choice.models)]
        merged = merge_arrays(
            self._strategy.id,
            [self._models[name] for name in names],
            self._base,
            dict(self.policy.params),
            weights=exact_weights([WEIGHT_ONE] * len(names)),
            digests=names,
            seed=seed_of(choice.models),
            artefacts=[self._artefacts[artefact.digest] for artefact in choice.artefacts],
            base_content=self.policy.base or b"",
        )
        decisions: dict[str, Any] = merged.decisions
        if decisions["strategy"] != self._strategy.id:
            raise ResolveError(f"{decisions['strategy']} stood in for {self._strategy.id}.")
        return rounded(merged), str(decisions["determinism"])

    def _choice(self, state: CRDTMergeState) -> Choice:
        models: dict[bytes, set[bytes]] = {}
        offers = []
        for shown in state.view.visible:
            if shown.type == "model":
                models.setdefault(shown.digest, set()).add(shown.author)
            else:
                artefact = self._artefacts[shown.digest].artefact
                is_admin = shown.author in self.genesis.admins
                order = (shown.depth, shown.tag)
                offers.append(Offer(artefact=artefact, author=shown.author, order=order, is_admin=is_admin))
        return choose(
            needs_of(self._strategy, dict(self.policy.params)),
            offers,
            models,
            base_content=self.policy.base or b"",
            sets_aside=True,
        )

    def _key(self, choice: Choice) -> bytes:
        artefacts = [artefact.digest for artefact in choice.artefacts]
        return resolve_key(used_root(choice.models), self.policy.recipe(), artefacts=artefacts)


def measure(group: Group) -> Through:
    """Return which laws hold between the replicas of a group.

    Raises:
        ResolveError: A merge is refused.
    """
    a, b, c = group.replicas
    meaning = group.meaning
    left = a.join(b).join(c)
    ends = [left, b.join(c.join(a)), c.join(a).join(a).join(b.join(c))]
    whole = meaning(left)
    outputs = [group.resolve(end) for end in ends]
    return Through(
        contributions=len({shown.digest for shown in whole[1].visible if shown.type == "model"}),
        operations=len(left.state),
        is_commutative=all(
            meaning(one.join(other)) == meaning(other.join(one)) for one, other in combinations((a, b, c), 2)
        ),
        is_associative=whole == meaning(a.join(b.join(c))),
        is_idempotent=all(meaning(one.join(one)) == meaning(one) for one in (a, b, c))
        and all(meaning(left.join(one)) == whole for one in (a, b, c, left)),
        is_converged=all(meaning(end) == whole and end.state.view == whole[1] for end in ends),
        replicas=widest([output for output, _ in outputs]),
        determinism=outputs[0][1],
    )


def _manifest(tensors: Any) -> Manifest:
    dtypes = {"|u1": "U8", "<f4": "F32"}
    return Manifest.of(_entries(tensors.items(), dtypes))


def _entries(tensors: Iterable[tuple[str, Any]], dtypes: dict[str, str]) -> list[ManifestEntry]:
    return [
        ManifestEntry(
            spec=TensorSpec(name=name, dtype=dtypes[values.dtype.str], shape=values.shape),
            blob=blob_digest_of(np.ascontiguousarray(values).tobytes()),
        )
        for name, values in tensors
    ]


def _model_digest(content: bytes) -> bytes:
    return Add(slot="main", type="model", content=content, weight=WEIGHT_ONE, payload=None).digest
