// The peer graph: this node in the middle, the connected around it, those it only knows outside.
// States are shapes, borders and words; colour repeats them.

import cytoscape from "./vendor/cytoscape.mjs";
import { colour } from "./charts.js";
import { h } from "./dom.js";
import { clean, short } from "./format.js";

const DRAWN_MAX = 300;
const NAME_CHARS_MAX = 20;
const LABELLED_MAX = 24;
const LABEL_PX = 10;
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
    userPanningEnabled: false,
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
  cy.elements().toggleClass("dense", shown.length > LABELLED_MAX);
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
  if (!present.hasClass(kind)) present.classes(kind);
  if (element.group === "nodes") present.data(element.data);
}

/** This node in the middle, the others evenly around it, so that no line runs through a node. */
function arrange() {
  const others = cy.nodes().filter((node) => node.id() !== last.node).sort((a, b) => a.data("order") - b.data("order"));
  const width = container.clientWidth;
  const height = container.clientHeight;
  const isDense = others.length > LABELLED_MAX;
  const margin = isDense ? 30 : 56;
  const places = new Map([[last.node, { x: width / 2, y: height / 2 - LABEL_PX }]]);
  spread(others.length, width, height).forEach((angle, i) => {
    // The connected stand nearer; where there are many, neighbours stand one behind the other.
    const reach = (others[i].data("isNear") ? 0.8 : 1) - (isDense ? 0.15 * (i % 2) : 0);
    places.set(others[i].id(), {
      x: width / 2 + reach * Math.max(width / 2 - margin, 40) * Math.cos(angle),
      y: height / 2 - LABEL_PX + reach * Math.max(height / 2 - margin, 40) * Math.sin(angle),
    });
  });
  cy.layout({ name: "preset", positions: (node) => places.get(node.id()), fit: false }).run();
  cy.viewport({ zoom: 1, pan: { x: 0, y: 0 } });
}

/** Angles that cut an ellipse into pieces of one length, from the left on. */
function spread(count, width, height) {
  const steps = 720;
  const lengths = [0];
  for (let step = 1; step <= steps; step += 1) {
    const middle = (2 * Math.PI * (step - 0.5)) / steps;
    lengths.push(lengths[step - 1] + Math.hypot(width * Math.sin(middle), height * Math.cos(middle)));
  }
  const found = [];
  for (let step = 0, i = 0; i < count; i += 1) {
    while (lengths[step] < (lengths[steps] * i) / count) step += 1;
    found.push(Math.PI + (2 * Math.PI * step) / steps);
  }
  return found;
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
    { selector: "node.dense", style: { width: 15, height: 15, label: "", "border-width": 2 } },
    { selector: "node.dense.self, node.dense.chosen", style: { label: "data(label)", "z-index": 2 } },
    { selector: "node.dense.self", style: { width: 26, height: 26 } },
    { selector: "node.chosen", style: { "underlay-color": colour("accent"), "underlay-opacity": 0.28, "underlay-shape": "ellipse", "underlay-padding": 9 } },
    { selector: "edge", style: { width: 1.25, "line-color": quiet, "curve-style": "straight", "overlay-opacity": 0 } },
    { selector: "edge.connected", style: { width: 2.5, "line-color": colour("accent") } },
    { selector: "edge.dense", style: { width: 1, opacity: 0.6 } },
    { selector: "edge.apart", style: { "line-style": "dotted", opacity: 0.7 } },
  ];
}
