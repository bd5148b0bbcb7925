// The layers of a resolve as a heat-map that is a table: every colour has its number in it.

import { h } from "./dom.js";
import { fixed, general, grouped, short } from "./format.js";

const ROWS_MAX = 400;
const MEASURES = {
  influences: ["Influence", "Share of the merged vector along each contribution; below zero it was worked against.", share],
  merged_cosines: ["Cosine", "Of each contribution with the merged vector.", signed],
  norms: ["Norm", "Length of each contribution's vector.", length],
};
let measure = "influences";

export function heatMap(layers, names) {
  const box = h("div", { class: "layers", "data-key": "layers" });
  fill(box, layers, names);
  return box;
}

function fill(box, layers, names) {
  const inputs = layers.inputs.map((one) => names.get(one.digest) ?? short(one.digest));
  const [, explanation, show] = MEASURES[measure];
  const shown = layers.tensors.slice(0, ROWS_MAX);
  const peak = Math.max(...shown.flatMap((tensor) => [...tensor.norms, tensor.merged_norm]), 0);
  const choice = (name) =>
    h("label", { class: "pill" },
      h("input", { type: "radio", name: "measure", value: name, checked: name === measure, onchange: () => {
        measure = name;
        const next = h("div");
        fill(next, layers, names);
        const present = document.querySelector(".layers");
        present.replaceChildren(...next.childNodes);
        present.querySelector(`input[value=${name}]`).focus();
      } }),
      h("span", {}, MEASURES[name][0]));
  box.append(
    h("fieldset", { class: "pills" }, h("legend", {}, "Colour by"), Object.keys(MEASURES).map(choice)),
    h("p", { class: "quiet small" }, `${explanation} Vectors are ${layers.of}. Conflict: the share of contested elements on whose sign contributions differ.`),
    h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Layers of the last resolve" },
      h("table", { class: "heat" },
        h("caption", { class: "unseen" }, "Layers of the last resolve"),
        h("thead", {}, h("tr", {}, ["Tensor", "Shape", "Conflict", ...inputs, "Merged norm"].map((head, i) => h("th", { scope: "col", class: i > 1 ? "number" : undefined }, head)))),
        h("tbody", {},
          row({ name: "the whole model", shape: null, ...layers.total }, show, peak, true),
          shown.map((tensor) => row(tensor, show, peak, false))))),
    layers.tensors.length > ROWS_MAX ? h("p", { class: "quiet" }, `${grouped(layers.tensors.length - ROWS_MAX)} more tensors: \`resolve --report FILE\` shows all.`) : "",
  );
}

function row(tensor, show, peak, isTotal) {
  const shape = tensor.shape === null ? "" : tensor.shape.join("×") || "scalar";
  return h("tr", { class: isTotal ? "total" : undefined },
    h("th", { scope: "row" }, tensor.name),
    h("td", { class: "shape" }, shape),
    heat("hot", tensor.conflict, `${fixed(tensor.conflict * 100, 1)} %`),
    tensor[measure].map((value) => show(value, isTotal ? Infinity : peak)),
    h("td", { class: "number" }, text(tensor.merged_norm)));
}

function share(value) {
  if (value === null) return h("td", { class: "number" }, "-");
  return heat(value < 0 ? "cold" : "one", Math.abs(value), `${fixed(value * 100, 1)} %`);
}

function signed(value) {
  if (value === null) return h("td", { class: "number" }, "-");
  return heat(value < 0 ? "cold" : "one", Math.abs(value), (value < 0 ? "" : "+") + value.toFixed(3));
}

function length(value, peak) {
  if (value === null) return h("td", { class: "number" }, "-");
  return heat("one", peak && Number.isFinite(peak) ? value / peak : 0, text(value));
}

/** A cell in one of 20 strengths of a colour: classes, since the page's policy allows no inline style. */
function heat(kind, strength, content) {
  const step = Math.round(Math.min(Math.max(strength, 0), 1) * 20);
  return h("td", { class: `number heat-${kind} heat-${step}` }, content);
}

function text(value) {
  return value === null ? "-" : general(value);
}
