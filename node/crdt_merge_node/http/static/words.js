// The command line's words for the same facts (cli/status.py, cli/contribution.py, cli/policy.py).

import { count, params, short, size, weight } from "./format.js";
import { id, state } from "./dom.js";

export const PEER_STATES = ["alive", "suspect", "failed", "known", "left", "blocked"];
const SEVERITIES = { damage: 0, error: 1, warning: 2 };

const PEER_LOOKS = {
  alive: ["good", "●"],
  suspect: ["warn", "◐"],
  failed: ["bad", "✕"],
  known: ["calm", "○"],
  left: ["calm", "◌"],
  blocked: ["bad", "⊘"],
};
const CONTRIBUTION_LOOKS = {
  used: ["good", "●"],
  missing: ["warn", "◐"],
  pending: ["calm", "○"],
  quarantined: ["bad", "✕"],
  hidden: ["calm", "◌"],
};
const SEVERITY_LOOKS = { warning: ["warn", "▲"], error: ["bad", "✕"], damage: ["bad", "■"] };
const LEVEL_LOOKS = { debug: ["calm", "·"], info: ["calm", "●"], warning: ["warn", "▲"], error: ["bad", "✕"] };

const look = (looks) => (word) => state(word, ...(looks[word] ?? ["calm", "?"]));
export const peerState = look(PEER_LOOKS);
export const contributionState = look(CONTRIBUTION_LOOKS);
export const severity = look(SEVERITY_LOOKS);
export const level = look(LEVEL_LOOKS);

export function byState(one, other) {
  const rank = (peer) => (PEER_STATES.indexOf(peer.state) + PEER_STATES.length + 1) % (PEER_STATES.length + 1);
  return rank(one) - rank(other) || compare(one.name, other.name) || compare(one.id, other.id);
}

export function bySeverity(one, other) {
  return (SEVERITIES[one.severity] ?? 0) - (SEVERITIES[other.severity] ?? 0) || one.since - other.since;
}

function compare(one, other) {
  return one < other ? -1 : one > other ? 1 : 0;
}

export function peersText(peers) {
  const states = PEER_STATES.filter((word) => peers.some((peer) => peer.state === word));
  return states.map((word) => `${peers.filter((peer) => peer.state === word).length} ${word}`).join(", ");
}

export function contributionsText(group) {
  const others = [[group.pending, "pending"], [group.quarantined, "quarantined"]];
  const more = others.filter(([number]) => number).map(([number, word]) => `${number} ${word}`).join(", ");
  return more ? `${group.contributions} (${more})` : String(group.contributions);
}

export function missingText(item) {
  return item.missing_blobs ? `${count(item.missing_blobs, "blob")}, ${size(item.missing_bytes)}` : "-";
}

export function convergedText(group) {
  return `${group.converged_peers} of ${count(group.live_peers, "peer")}`;
}

export function rootText(group) {
  return `${group.converged_peers} of ${count(group.live_peers, "live peer")} at root ${short(group.sync_root)}`;
}

export function yesNo(value) {
  return value === true ? "yes" : value === false ? "no" : "-";
}

const LORA = "lora."; // Before the names of those parameters of a policy that are of adapters.

function contributionFacts(policy) {
  if (!Object.keys(policy.params).some((name) => name.startsWith(LORA))) {
    return [["contributions", "whole models"]];
  }
  const rule = (name, usual) => policy.params[LORA + name] ?? usual;
  const base = rule("base", "") ? ` trained from ${rule("base", "")}` : "";
  const into = { adapter: `an adapter of rank ${rule("rank", "auto")}`, delta: "whole differences", model: "a model" };
  return [
    ["contributions", `LoRA adapters${base}, of rank ${rule("rank_max", "256")} at most`],
    ["resolve to", into[rule("output", "adapter")] ?? rule("output", "")],
  ];
}

export function policyFacts(policy) {
  const own = Object.entries(policy.params).filter(([name]) => !name.startsWith(LORA));
  const model = policy.tensors ? `${count(policy.tensors, "tensor")}, ${size(policy.nbytes)}` : "not here yet";
  return [
    ["version", String(policy.version)],
    ...contributionFacts(policy),
    ["strategy", `${policy.strategy} ${policy.strategy_version}`.trim()],
    ["parameters", params(Object.fromEntries(own))],
    ["base", policy.base ? id(policy.base, 64) : "none"],
    ["schema", `${short(policy.schema)}: ${model}`],
    ["output type", policy.dtype || "that of the base, else the widest input"],
    ["weight cap", weight(policy.weight_cap)],
    ["holders", String(policy.holders)],
    ["seed rule", policy.seed_rule],
    ["admins", `${policy.quorum} of ${policy.admins.map(short).join(", ")}`],
  ];
}
