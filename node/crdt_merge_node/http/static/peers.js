// Who is there and how this node stands with each: as a graph, and as a table that says the same.

import { facts, h, id, table } from "./dom.js";
import { line } from "./events.js";
import { age, count, day, duration, fixed, short, size } from "./format.js";
import { graph } from "./graph.js";
import { byState, peerState, peersText, yesNo } from "./words.js";

const number = (text) => ({ cell: text, attributes: { class: "number" } });
const HEADS = ["State", "View", "Peer", "Name", "Address", "Direction", number("RTT"), number("Since"), number("Sync"), "Converged", "Reason"];
let chosen = "";

export const peers = {
  name: "peers",
  title: "Peers",

  needs: () => ({}),

  render({ status }) {
    const found = [...status.peers].sort(byState);
    return [
      h("header", { "data-key": "head" },
        h("h1", { tabindex: -1 }, "Peers"),
        h("p", { class: "lead" }, found.length ? `${peersText(found)}.` : "no peers: `invite` prints what to run on the next machine"),
      ),
      h("section", { "data-key": "graph", class: "graph-box", "aria-label": "Graph" },
        h("div", { class: "graph", "data-keep": "graph", role: "img", "aria-label": "This node and its peers as a graph; the table below says the same." }),
        h("div", { class: "legend" }, graph.legend(found)),
      ),
      h("section", { "data-key": "table", "aria-label": "Table" },
        found.length ? h("p", { class: "quiet small" }, "Arrow keys move from row to row and show the peer in the graph; Enter tells its story.") : null,
        found.length ? table("Peers", HEADS, found.map((peer, i) => row(peer, status.now, i, found)), { class: "rows", onkeydown: move }) : null,
      ),
    ];
  },

  after(main, { status }) {
    graph.draw(main.querySelector(".graph"), status, choose);
    graph.choose(chosen);
  },

  theme: () => graph.redraw(),
  left: () => graph.forget(),
};

function row(peer, now, position, all) {
  const isReachable = all.some((one) => one.id === chosen) ? peer.id === chosen : position === 0;
  return {
    key: peer.id,
    attributes: {
      tabindex: isReachable ? 0 : -1,
      "aria-current": peer.id === chosen ? "true" : undefined,
      onclick: () => choose(peer.id),
      onfocus: () => choose(peer.id),
    },
    cells: [
      peerState(peer.state),
      peer.view || "-",
      id(peer.id),
      h("a", { class: "name", href: `#/peers/${peer.id}`, tabindex: -1 }, peer.name || "-"),
      peer.addresses[0] ?? "-",
      peer.direction || "-",
      number(peer.rtt_s === null ? "-" : milliseconds(peer.rtt_s)),
      number(age(now, peer.since)),
      number(age(now, peer.last_sync)),
      yesNo(peer.is_converged),
      h("span", { class: "reason" }, peer.state !== "alive" ? peer.last_error : ""),
    ],
  };
}

function choose(peer) {
  if (chosen === peer) return;
  chosen = peer;
  for (const each of document.querySelectorAll(".rows tbody tr")) {
    const isChosen = each.dataset.key === peer;
    if (isChosen) each.setAttribute("aria-current", "true");
    else each.removeAttribute("aria-current");
    each.tabIndex = isChosen ? 0 : -1;
  }
  graph.choose(peer);
}

const milliseconds = (seconds) => `${fixed(seconds * 1000, 1)} ms`;

/** Arrow keys, Home and End go from row to row, Enter into one. */
function move(event) {
  if (event.key === "Enter" && event.target.tagName === "TR") {
    location.hash = `#/peers/${event.target.dataset.key}`;
    return;
  }
  const rows = [...document.querySelectorAll(".rows tbody tr")];
  const here = rows.indexOf(event.target.closest("tr"));
  const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (next === undefined || !rows[next]) return;
  event.preventDefault();
  rows[next].focus();
}


/** What `peer show` prints. */
export const peer = {
  name: "peers",
  title: "Peer",

  needs: (name) => ({ detail: `/api/peer.json?peer=${encodeURIComponent(name)}` }),

  render({ detail }) {
    const found = detail.peer;
    return [
      h("header", { "data-key": "head" },
        h("p", { class: "crumb" }, h("a", { href: "#/peers" }, "Peers")),
        h("h1", { tabindex: -1 }, found.name || short(found.id)),
        h("p", { class: "lead" }, peerState(found.state), ` for ${age(detail.now, found.since)}`),
      ),
      h("section", { "data-key": "facts", "aria-labelledby": "h-peer" },
        h("h2", { id: "h-peer" }, "How this node stands with it"),
        facts([...identity(detail), ...connection(detail), ...trouble(detail)])),
      detail.exchanges.length
        ? h("section", { "data-key": "exchanges", "aria-labelledby": "h-exchanges" },
            h("h2", { id: "h-exchanges" }, "Groups"),
            table("Exchanges", ["Group", "Difference", "Last exchange", "Outcome", "Operations", number("Took"), "Reason"],
              detail.exchanges.map((one) => ({ key: one.group, cells: exchange(one, detail.now) }))))
        : null,
      h("section", { "data-key": "story", "aria-labelledby": "h-story" },
        h("h2", { id: "h-story" }, "Its story"),
        detail.events.length
          ? h("ol", { class: "log", reversed: true }, [...detail.events].reverse().map((event) => line(event, ["peer"])))
          : h("p", { class: "quiet" }, "no event of late names it")),
    ].filter(Boolean);
  },
};

function identity({ peer: found, agent, wire_version_min, wire_version_max, certificate_expires, now }) {
  const left = certificate_expires > now ? `${fixed((certificate_expires - now) / 86400, 0)} days left` : "EXPIRED";
  return [
    ["id", id(found.id, 64)],
    ["addresses", found.addresses.join(", ") || "none is known"],
    ["view", found.view],
    ["version", agent && `${agent}, wire versions ${wire_version_min} to ${wire_version_max}`],
    ["certificate", certificate_expires === null ? "" : `valid until ${day(certificate_expires)}, ${left}`],
  ];
}

function connection({ peer: found, connected_since, remote, queued_bytes, now }) {
  const traffic = `${size(found.bytes_in)} in, ${size(found.bytes_out)} out since the start`;
  if (connected_since === null) {
    return [["connection", "none"], ["bytes", found.bytes_in || found.bytes_out ? traffic : ""]];
  }
  const dialler = found.direction === "outbound" ? "this node dialled" : "the peer dialled";
  return [
    ["connection", `${remote}, direct; ${dialler} ${age(now, connected_since)} ago`],
    ["round trip", found.rtt_s === null ? "not measured yet" : milliseconds(found.rtt_s)],
    ["bytes", traffic + (queued_bytes ? `, ${size(queued_bytes)} wait to be sent` : "")],
  ];
}

function trouble(detail) {
  const who = detail.accused_by.map(short).join(", ");
  const lacking = `${size(detail.missing_bytes)} of ${count(detail.missing_contributions, "contribution")} by it`;
  return [
    ["suspected", detail.suspected_since === null ? "" : `for ${duration(detail.now - detail.suspected_since)}, by ${who}`],
    ["not heard", detail.refusal],
    ["dialling", detail.dial_attempts ? `${count(detail.dial_attempts, "dial")} in a row without success` : ""],
    ["last error", detail.peer.state !== "alive" ? detail.peer.last_error : ""],
    ["missing here", detail.missing_contributions ? lacking : ""],
  ];
}

function exchange(one, now) {
  const hasEnded = Boolean(one.ended);
  return [
    h("a", { class: "name", href: `#/groups/${one.group}` }, one.group_name || short(one.group)),
    lacks(one),
    hasEnded ? `${age(now, one.ended)} ago` : "-",
    one.outcome || "-",
    hasEnded ? `${one.sent} out, ${one.received} in, ${size(one.nbytes)}` : "-",
    number(hasEnded ? duration(one.duration_s) : "-"),
    h("span", { class: "reason" }, one.reason),
  ];
}

function lacks(one) {
  if (one.is_equal === null || one.peer_operations === null) return "it has announced no root";
  if (one.is_equal) return "none";
  const difference = one.peer_operations - one.operations;
  if (difference > 0) return `we lack ${count(difference, "operation")} or more`;
  if (difference < 0) return `it lacks ${count(-difference, "operation")} or more`;
  return "each lacks as many as the other";
}
