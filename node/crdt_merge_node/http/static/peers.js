// Who is there and how this node stands with each: as a graph, and as a table that says the same.

import { h, id, table } from "./dom.js";
import { age } from "./format.js";
import { graph } from "./graph.js";
import { byState, peerState, peersText, yesNo } from "./words.js";

const number = (text) => ({ cell: text, attributes: { class: "number" } });
const HEADS = ["State", "View", "Peer", "Name", "Address", "Direction", number("Since"), number("Sync"), "Converged", "Reason"];
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
        found.length ? h("p", { class: "quiet small" }, "Arrow keys move from row to row and show the peer in the graph.") : null,
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
      h("span", { class: "name" }, peer.name || "-"),
      peer.addresses[0] ?? "-",
      peer.direction || "-",
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

/** Arrow keys, Home and End go from row to row. */
function move(event) {
  const rows = [...document.querySelectorAll(".rows tbody tr")];
  const here = rows.indexOf(event.target.closest("tr"));
  const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (next === undefined || !rows[next]) return;
  event.preventDefault();
  rows[next].focus();
}

