"""Every cap of the protocol, with unit and reason, in one file.

A cap is a promise to the reader of the code that follows: nothing a peer sends makes a node allocate, loop
or store beyond it. Precedents are named where the number came from somewhere.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- operations (PROTOCOL R1) -------------------------------------------------------------------------
OPERATION_BYTES_MAX: Final = 60 * KIB
"""One encoded operation. With its signature it must fit one control frame."""
DEPS_MAX: Final = 64
"""Heads named by an operation. More concurrent heads than this are joined by later operations."""
REFS_MAX: Final = 1024
"""Ids that a body names (a remove of many tags)."""
NAME_CHARS_MAX: Final = 200
"""Names of groups, slots, tensors. They never become paths."""
POLICY_SIGNATURES_MAX: Final = 32
"""Administrators that a genesis may name, hence signatures that an act may carry."""
ACT_CONTENTS_MAX: Final = 1024
"""Contents that one ban or erasure names. With as many tags it would not fit an operation."""
REASON_CHARS_MAX: Final = 1024
"""Why administrators did something, for people."""
POLICY_PARAMS_MAX: Final = 64
POLICY_TEXT_CHARS_MAX: Final = 16384
"""One parameter value of a policy, as text: a table over layers and models can be long."""
WEIGHT_ONE: Final = 1 << 32
"""Weights are integers over 2^32: 1.0 is this. No floating point number is ever hashed."""
WEIGHT_MAX: Final = (1 << 63) - 1

# --- canonical encoding -------------------------------------------------------------------------------
DEPTH_MAX: Final = 8
"""Nesting of a decoded value. The msgpack library itself would accept 500 and crash at 5,000."""
CONTROL_BODY_BYTES_MAX: Final = 64 * KIB
"""Body of a control frame: one operation with its signature, or a page of ids."""
DATA_BODY_BYTES_MAX: Final = MIB + 256
"""Body of a data frame: one chunk and its header."""
ELEMENTS_MAX: Final = 16384
"""Elements in one array or map of a control body."""

# --- causal delivery (PROTOCOL R3) --------------------------------------------------------------------
ORPHANS_MAX: Final = 4096
ORPHAN_BYTES_MAX: Final = 16 * MIB
ORPHANS_PER_PEER_MAX: Final = ORPHANS_MAX // 8
"""An offender evicts its own orphans first."""
ORPHAN_BYTES_PER_PEER_MAX: Final = ORPHAN_BYTES_MAX // 8
ASIDE_BYTES_MAX: Final = 64 * MIB
"""Operations of revoked keys that came and are not kept, remembered for what may be made after them."""
IN_FLIGHT_BYTES_MAX: Final = 8 * MIB
"""Pushed operations on their way to the disk. Beyond it a push is shed, and anti-entropy fetches it."""

# --- credit of a peer (PROTOCOL R19, SCENARIOS T17) ---------------------------------------------------
OPERATIONS_PER_S: Final = 1024.0
"""Of one peer, on end: an eighth of what one core can check, less than a third of what a node takes in."""
OPERATIONS_BURST: Final = 131_072.0
"""At once, at full speed: a group of 100,000 operations comes to a new node without a wait."""
OPERATION_BYTES_PER_S: Final = 4.0 * MIB
OPERATION_BYTES_BURST: Final = 256.0 * MIB
OPERATIONS_PER_TURN_MAX: Final = 64
"""From one peer before others have their turn: some 20 ms of work."""

# --- anti-entropy (PROTOCOL 2) ------------------------------------------------------------------------
TRIE_LEAF_IDS_MAX: Final = 16
SHORT_DIGEST_BYTES: Final = 8
"""Keyed by both nonces of the session, so that prepared collisions are useless."""
SYNC_INBOUND_MAX: Final = 3
SYNC_INBOUND_PER_PEER_MAX: Final = 2
"""One inbound session is always left for somebody else."""
SYNC_OUTBOUND_MAX: Final = 2
SYNC_LIST_THRESHOLD: Final = 1024
"""More missing than this: stream the whole list in causal order instead of walking the trie."""
SYNC_PAGE_IDS_MAX: Final = 1024
SYNC_PROGRESS_TIMEOUT_S: Final = 10.0
SYNC_RETRY_AFTER_S: Final = 0.5
SYNC_ROUNDS_MAX: Final = 80
"""Messages in one walk: 64 nibbles of path plus slack."""
SYNC_STEP_BYTES_MAX: Final = MIB
"""One step of a walk. Where more would differ, listing everything costs less than searching on."""
SYNC_WINDOW_BYTES: Final = MIB
"""Operations on their way that are not yet durable at the receiver; a quarter of a lane."""

# --- blobs (PROTOCOL 5) -------------------------------------------------------------------------------
CHUNK_BYTES: Final = MIB
"""Part of the format: blob digests are over chunks of this size."""
INLINE_BLOB_BYTES_MAX: Final = 64 * KIB
"""Blobs up to here are rows of the operation database, larger ones files."""
MANIFEST_BYTES_MAX: Final = 8 * MIB
PAYLOAD_BYTES_MAX: Final = 16 * KIB
"""Metadata that travels beside a contribution and can be erased."""
TENSORS_MAX: Final = 20_000
NDIM_MAX: Final = 8
DIMENSION_MAX: Final = 1 << 31
BLOB_BYTES_MAX: Final = 32 * GIB
"""The chunk digests of a larger blob would not fit one data frame."""
SAFETENSORS_HEADER_BYTES_MAX: Final = 8 * MIB
SHARDS_MAX: Final = 4096
"""Files of one checkpoint."""
SHARD_NAME_CHARS_MAX: Final = 200
PACKING_BYTES_MAX: Final = 8 * MIB
"""Headers and index of a checkpoint as its author had them: an object, like a manifest."""
"""20,000 tensors of 300 bytes each, with room; a manifest has the same cap."""
ADAPTER_HEADER_BYTES_MAX: Final = INLINE_BLOB_BYTES_MAX
"""What an adapter's tensors mean: a row of the database; a thousand modules with an alpha of their own."""
ADAPTER_CONFIG_BYTES_MAX: Final = MIB
"""The configuration of an adapter as its author had it; kept beside the headers of its files."""
ADAPTER_RANK_MAX: Final = 4096
"""Beyond the rank that any group may allow: singular values cost its cube."""
PROVIDER_BAN_S: Final = 3600.0
"""How long a peer that sent a bad chunk is not asked again."""
WANT_CHUNKS_MAX: Final = 64
"""Chunks named by one request."""
BULK_REQUESTS_MAX: Final = 256
"""Chunks and objects that a connection may have asked for and not yet got. The asking side stays below it,
the serving side closes beyond it: that bounds the memory of both (SCENARIOS B43)."""
FETCH_BYTES_MAX: Final = 64 * MIB
"""Asked for or received and not yet written, over all peers: what a crash may cost to fetch again."""
FETCH_STALL_S: Final = 10.0
"""A provider that owes chunks and makes no progress for this long is left alone for a while."""
FETCH_RATE_MIN_BYTES_PER_S: Final = 4096
"""Less than this is no progress: a slow drip must not hold a window (SCENARIOS T15)."""

# --- groups and cluster -------------------------------------------------------------------------------
GROUPS_MAX: Final = 1024
GENESIS_BYTES_MAX: Final = 32 * KIB
FULL_MESH_NODES_MAX: Final = 12
ADDRESSES_PER_PEER_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 256
HEARSAY_PER_PEER_MAX: Final = 128
"""Peers that we know of only because one other told us. Who tells of more loses the oldest it told of."""
DEPARTURES_PER_PEER_MAX: Final = 256
"""Unknown nodes of which one connection may tell that they left: each costs a signature and is told on."""
DIALS_MAX: Final = 8
"""Attempts to connect at a time, so that made-up addresses cannot use up sockets and name look-ups."""

# --- partial view and tree (PROTOCOL 3) -----------------------------------------------------------------
FULL_MESH_NODES_MIN: Final = 10
"""A partial view goes back to a full mesh at this many nodes; between the two nothing changes."""
ACTIVE_MAX: Final = 8
ACTIVE_MIN: Final = 4
"""With fewer links a node is urgent: whom it asks makes room for it."""
CHOSEN_MAX: Final = 4
"""Links kept for peers that this node chose itself at random. Whoever dials us gets the others (T27)."""
PASSIVE_MAX: Final = 48
WALK_STEPS_MAX: Final = 6
"""Active random walk length of HyParView: how far a newcomer is carried."""
WALK_NOTE_STEP: Final = 3
"""Passive random walk length: where on that walk it is noted, and how far a shuffle is carried."""
SAMPLE_PEERS_MAX: Final = 8
"""Peers named by one message of the overlay."""
SAMPLE_ADDRESSES_MAX: Final = 2
SHUFFLES_ROUTED_MAX: Final = 256
"""Shuffles whose answer this node will pass back. The oldest is forgotten; its origin asks again in 10 s."""
LOST_PEERS_MAX: Final = 16
"""Neighbours whose connection broke, and that are dialled until they answer."""
IHAVE_IDS_MAX: Final = 1024
ANNOUNCED_MAX: Final = 8192
"""Operations heard of by IHAVE and not here. Beyond it an IHAVE is not heeded; anti-entropy repairs."""
ANNOUNCED_PER_PEER_MAX: Final = ANNOUNCED_MAX // 8
RECENT_IDS_MAX: Final = 8192
"""Operations of which is remembered who brought them first, and who has them as well."""
ATTESTATIONS_PER_GROUP_MAX: Final = 1024
"""Of this node, in one group; the newest are kept."""
ATTESTATIONS_PER_PEER_MAX: Final = 256
"""Of one peer in one group: a flood pushes out the flooder's own."""

# --- transport (PROTOCOL 4) ---------------------------------------------------------------------------
FRAME_HEADER_BYTES: Final = 6
WIRE_VERSION_MIN: Final = 1
WIRE_VERSION_MAX: Final = 1
HANDSHAKE_TIMEOUT_S: Final = 5.0
HELLO_TIMEOUT_S: Final = 2.0
JOIN_TIMEOUT_S: Final = 10.0
"""Each step of joining. The admitting side writes to its disk in between."""
LINGER_S: Final = 2.0
"""How long a closing connection waits for the peer's end before it is cut."""
FRAME_GRACE_S: Final = 5.0
FRAME_BYTES_PER_S_MIN: Final = 4 * KIB
"""Slower than this, after the grace, a peer holds a frame's memory without using the line."""
PING_IDLE_S: Final = 1.0
PING_MISSES_MAX: Final = 3
LANE_BYTES_MAX: Final = 4 * MIB
"""Queued bytes per lane of a connection. Beyond it payloads are shed; anti-entropy fetches them."""
CONNECTIONS_MAX: Final = 512
UNAUTHENTICATED_MAX: Final = 64
UNAUTHENTICATED_PER_ADDRESS_MAX: Final = 32
"""Lifted once authenticated, so that one host may run many nodes."""
ACCEPT_BURST: Final = 64
ACCEPT_RATE_PER_S: Final = 50.0
