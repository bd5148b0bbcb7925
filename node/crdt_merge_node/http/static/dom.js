// Elements from data. Names, notes and reasons come from other machines: they become text, never markup, and
// no text turns the direction of what stands beside it.

import { clean } from "./format.js";

/**
 * Return an element. `attributes`: strings, numbers or booleans; `on…` are listeners; undefined and false are
 * left out. Children are elements, text, arrays of both, or nothing.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : clean(String(value)));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (child === undefined || child === null || child === false || child === "") continue;
    if (Array.isArray(child)) append(element, child);
    else element.append(child instanceof Node ? child : document.createTextNode(clean(String(child))));
  }
}

/**
 * Make `present` look like `wanted` and change as little as possible, so that focus, selection, scrolling and
 * what a screen reader reads survive. Children match by `data-key`, else by position. An element with
 * `data-keep` is left alone once it is there: charts and the graph draw into it themselves.
 */
export function morph(present, wanted) {
  if (present.dataset?.keep !== undefined && present.dataset.keep === wanted.dataset?.keep) return;
  for (const { name } of [...present.attributes]) {
    if (!wanted.hasAttribute(name)) present.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (present.getAttribute(name) !== value) present.setAttribute(name, value);
  }
  morphChildren(present, [...wanted.childNodes]);
}

export function morphChildren(parent, wanted) {
  const keyed = new Map();
  for (const child of parent.children) {
    if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  }
  let place = parent.firstChild;
  for (const next of wanted) {
    const key = next.dataset?.key;
    let match = key === undefined ? place : (keyed.get(key) ?? null);
    if (match && !isAlike(match, next)) match = null;
    if (match === null) {
      parent.insertBefore(next, place);
      continue;
    }
    if (match === place) place = place.nextSibling;
    else parent.insertBefore(match, place);
    if (match.nodeType === Node.TEXT_NODE) {
      if (match.data !== next.data) match.data = next.data;
    } else {
      morph(match, next);
    }
  }
  while (place) {
    const rest = place.nextSibling;
    place.remove();
    place = rest;
  }
}

function isAlike(one, other) {
  return (
    one.nodeType === other.nodeType &&
    one.nodeName === other.nodeName &&
    one.dataset?.key === other.dataset?.key &&
    one.dataset?.keep === other.dataset?.keep
  );
}

/** A table that scrolls sideways by itself on narrow screens. `rows`: arrays of cells, or {key, attributes, cells}. */
export function table(caption, heads, rows, attributes = {}) {
  return h(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      attributes,
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => cell("th", head, { scope: "col" })))),
      h(
        "tbody",
        {},
        rows.map((row) => {
          const cells = Array.isArray(row) ? row : row.cells;
          return h("tr", Array.isArray(row) ? {} : { "data-key": row.key, ...row.attributes }, cells.map((one) => cell("td", one)));
        }),
      ),
    ),
  );
}

function cell(tag, content, attributes = {}) {
  if (content?.cell !== undefined) return h(tag, { ...attributes, ...content.attributes }, content.cell);
  return h(tag, attributes, content);
}

/** Labelled values; those without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return h(
    "dl",
    { class: "facts" },
    shown.map(([label, value]) => h("div", { "data-key": label }, h("dt", {}, label), h("dd", {}, value))),
  );
}

/** An id by its first digits, the whole of it on hover and for copying. */
export function id(text, digits = 12) {
  return text ? h("code", { class: "id", title: text }, text.slice(0, digits)) : "-";
}

/** A state as symbol and word: never by colour alone. */
export function state(word, kind, symbol) {
  return h("span", { class: `state ${kind}` }, h("span", { class: "symbol", "aria-hidden": "true" }, symbol), " ", word);
}
