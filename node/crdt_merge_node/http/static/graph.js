// The peer graph: this node in the middle, the connected around it, those it only knows outside.
// States are shapes, borders and words; colour repeats them.

import cytoscape from "./vendor/cytoscape.mjs";
import { colour } from "./charts.js";
import { h } from "./dom.js";
import { clean, short } from "./format.js";

const DRAWN_MAX = 300;
const NAME_CHARS_MAX = 20;
const SHAPES = {
  alive: ["ellipse", "solid", "good"],
  suspect: ["diamond", "solid", "warn"],
  failed: ["octagon", "dashed", "bad"],
  known: ["ellipse", "dotted", "quiet"],
  left: ["round-rectangle", "dotted", "quiet"],
  blocked: ["triangle", "solid", "bad"],
};
const WORDS = {
  alive: "alive: a circle",
  suspect: "suspect: a diamond",
  failed: "failed: an octagon, dashed",
  known: "known: a circle, dotted",
  left: "left: a square, dotted",
  blocked: "blocked: a triangle",
};

let container = null;
let cy = null;
let last = null;
let onChoose = () => {};
let members = "";
let chosen = "";
let observer = null;

export const graph = {
  /** The key to what occurs, and no more. */
  legend(peers) {
    const words = Object.keys(WORDS).filter((word) => peers.some((peer) => peer.state === word));
    return h("ul", { role: "list" },
      h("li", { class: "key key-self", "data-key": "self" }, "this node"),
      words.map((word) => h("li", { class: `key key-${word}`, "data-key": word }, WORDS[word])),
      peers.some((peer) => peer.direction) && h("li", { class: "key key-connected", "data-key": "connected" }, "whole line: connected"),
      peers.some((peer) => !peer.direction) && h("li", { class: "key key-apart", "data-key": "apart" }, "dotted line: not connected"),
    );
  },

  draw(element, status, choose) {
    if (!element) return;
    last = status;
    onChoose = choose;
    if (element !== container) {
      graph.forget();
      container = element;
      build();
    }
    update();
  },

  choose(peer) {
    chosen = peer;
    cy?.nodes().forEach((node) => node.toggleClass("chosen", node.id() === peer));
  },

  redraw() {
    if (!cy) return;
    cy.style(look());
  },

  forget() {
    observer?.disconnect();
    cy?.destroy();
    cy = null;
    container = null;
    members = "";
  },
};

function build() {
  cy = cytoscape({
    container,
    style: look(),
    userZoomingEnabled: false,
    boxSelectionEnabled: false,
    autoungrabify: true,
    minZoom: 0.2,
    maxZoom: 1.15,
  });
  cy.on("tap", "node", (event) => {
    if (event.target.id() !== last.node) onChoose(event.target.id());
  });
  observer = new ResizeObserver(() => {
    cy.resize();
    arrange();
  });
  observer.observe(container);
}

function update() {
  const shown = [...last.peers].sort((a, b) => !a.direction - !b.direction || (a.id < b.id ? -1 : 1)).slice(0, DRAWN_MAX);
  const wanted = new Map();
  wanted.set(last.node, { id: last.node, label: `${nameOf(last.name, last.node)}\nthis node`, kind: "self" });
  shown.forEach((peer, order) => {
    const label = `${nameOf(peer.name, peer.id)}\n${peer.state}`;
    wanted.set(peer.id, { id: peer.id, label, order, isNear: Boolean(peer.direction), kind: peer.state });
  });
  cy.batch(() => {
    cy.nodes().forEach((node) => {
      if (!wanted.has(node.id())) node.remove();
    });
    for (const data of wanted.values()) put({ group: "nodes", data }, data.kind);
    for (const peer of shown) {
      const kind = peer.direction ? "connected" : "apart";
      put({ group: "edges", data: { id: `edge ${peer.id}`, source: last.node, target: peer.id } }, kind);
    }
  });
  graph.choose(chosen);
  const now = [...wanted.values()].map((one) => `${one.id}${one.isNear}`).sort().join();
  if (now !== members) {
    members = now;
    arrange();
  }
}

/** A name, cut where it would cover its neighbours; the table has all of it. */
function nameOf(name, node) {
  const text = clean(name) || short(node);
  return text.length > NAME_CHARS_MAX ? `${text.slice(0, NAME_CHARS_MAX - 1)}…` : text;
}

function put(element, kind) {
  const present = cy.getElementById(element.data.id);
  if (present.empty()) {
    cy.add({ ...element, classes: kind });
    return;
  }
  present.classes(kind);
  if (element.group === "nodes") present.data(element.data);
}

/** This node in the middle, the others evenly around it, so that no line runs through a node. */
function arrange() {
  const others = cy.nodes().filter((node) => node.id() !== last.node).sort((a, b) => a.data("order") - b.data("order"));
  const wide = Math.min(Math.max(container.clientWidth / container.clientHeight, 1), 2.2);
  const radius = Math.max(105, (others.length * 62) / (2 * Math.PI));
  const places = new Map([[last.node, { x: 0, y: 0 }]]);
  others.forEach((node, i) => {
    const angle = Math.PI + (2 * Math.PI * i) / others.length;
    const reach = radius * (node.data("isNear") ? 1 : 1.3);
    places.set(node.id(), { x: reach * wide * Math.cos(angle), y: reach * Math.sin(angle) });
  });
  cy.layout({ name: "preset", positions: (node) => places.get(node.id()), fit: true, padding: 34 }).run();
}

function look() {
  const ink = colour("ink");
  const panel = colour("panel");
  const quiet = colour("quiet");
  const states = Object.entries(SHAPES).map(([word, [shape, border, name]]) => ({
    selector: `node.${word}`,
    style: { shape, "border-style": border, "border-color": colour(name), "background-color": colour(`${name}-wash`) },
  }));
  return [
    {
      selector: "node",
      style: {
        label: "data(label)",
        "text-wrap": "wrap",
        "text-valign": "bottom",
        "text-margin-y": 6,
        "text-background-color": panel,
        "text-background-opacity": 0.9,
        "text-background-padding": 2,
        "font-family": "system-ui, sans-serif",
        "font-size": 12,
        "line-height": 1.25,
        color: ink,
        width: 30,
        height: 30,
        "border-width": 2.5,
        "background-opacity": 1,
        "overlay-opacity": 0,
      },
    },
    ...states,
    {
      selector: "node.self",
      style: { shape: "round-rectangle", width: 34, height: 34, "background-color": colour("accent"), "border-color": colour("accent"), "font-weight": 600 },
    },
    { selector: "node.chosen", style: { "underlay-color": colour("accent"), "underlay-opacity": 0.28, "underlay-shape": "ellipse", "underlay-padding": 9 } },
    { selector: "edge", style: { width: 1.25, "line-color": quiet, "curve-style": "straight", "overlay-opacity": 0 } },
    { selector: "edge.connected", style: { width: 2.5, "line-color": colour("accent") } },
    { selector: "edge.apart", style: { "line-style": "dotted", opacity: 0.7 } },
  ];
}
