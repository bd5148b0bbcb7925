// The peer graph: this node in the middle, the connected around it, those it only knows outside.
// States are shapes, borders and words; colour repeats them.

import cytoscape from "./vendor/cytoscape.mjs";
import { colour } from "./charts.js";
import { h } from "./dom.js";
import { short } from "./format.js";

const DRAWN_MAX = 300;
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
  legend() {
    return h("ul", { role: "list" },
      Object.entries(WORDS).map(([word, text]) => h("li", { class: `key key-${word}` }, text)),
      h("li", { class: "key key-connected" }, "whole line: connected"),
      h("li", { class: "key key-apart" }, "dotted line: not connected"),
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
    maxZoom: 1.4,
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
  const shown = [...last.peers].sort((a, b) => ring(b) - ring(a) || (a.id < b.id ? -1 : 1)).slice(0, DRAWN_MAX);
  const wanted = new Map();
  wanted.set(last.node, { id: last.node, label: `${last.name || short(last.node)}\nthis node`, ring: 3, kind: "self" });
  for (const peer of shown) {
    wanted.set(peer.id, { id: peer.id, label: `${peer.name || short(peer.id)}\n${peer.state}`, ring: ring(peer), kind: peer.state });
  }
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
  const now = [...wanted.values()].map((one) => `${one.id}${one.ring}`).sort().join();
  if (now !== members) {
    members = now;
    arrange();
  }
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

function ring(peer) {
  return peer.direction ? 2 : 1;
}

function arrange() {
  cy.layout({
    name: "concentric",
    animate: false,
    padding: 28,
    minNodeSpacing: 64,
    startAngle: -Math.PI / 2,
    concentric: (node) => node.data("ring"),
    levelWidth: () => 1,
  }).run();
}

function look() {
  const ink = colour("ink");
  const page = colour("page");
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
        "text-background-color": page,
        "text-background-opacity": 0.8,
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
      style: { shape: "round-rectangle", width: 42, height: 42, "background-color": colour("accent"), "border-color": colour("accent"), "font-weight": 600 },
    },
    { selector: "node.chosen", style: { "border-width": 5, "border-color": ink, width: 36, height: 36 } },
    { selector: "edge", style: { width: 1.25, "line-color": quiet, "curve-style": "straight", "overlay-opacity": 0 } },
    { selector: "edge.connected", style: { width: 2.5, "line-color": colour("accent") } },
    { selector: "edge.apart", style: { "line-style": "dotted", opacity: 0.7 } },
  ];
}
