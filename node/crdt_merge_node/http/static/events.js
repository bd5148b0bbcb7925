// What happens, as it happens. The line comes back by itself; what was missed meanwhile is told then.

import { h, id } from "./dom.js";
import { clock, count, day } from "./format.js";
import { level } from "./words.js";

const LEVELS = ["debug", "info", "warning", "error"];
const KEPT_MAX = 1000;
const ID = /^[0-9a-f]{64}$/;

let source = null;
let chosen = "info";
let isPaused = false;
let kept = [];
let held = [];
let isOpen = false;

export const events = {
  name: "events",
  title: "Events",

  needs: () => ({}),

  render() {
    return [
      h("header", { "data-key": "head" },
        h("h1", { tabindex: -1 }, "Events"),
        h("p", { class: "lead" }, "What this node did, the newest first."),
      ),
      h("form", { class: "tools", "data-key": "tools", onsubmit: (event) => event.preventDefault() },
        h("fieldset", { class: "pills" }, h("legend", {}, "At least"),
          LEVELS.map((name) => h("label", { class: "pill" },
            h("input", { type: "radio", name: "level", value: name, checked: name === chosen, onchange: () => choose(name) }),
            h("span", {}, name)))),
        h("button", { type: "button", class: "quiet-button", id: "pause", onclick: pause }, pauseText()),
        h("p", { class: "quiet", id: "line", role: "status", "data-keep": "line" }),
      ),
      h("ol", { class: "log", "data-keep": "log", "data-key": "log", role: "log", "aria-live": "polite", "aria-label": "Events", tabindex: 0, reversed: true }),
    ];
  },

  after() {
    if (source === null) open();
    tell();
  },

  left() {
    source?.close();
    source = null;
    isOpen = false;
    isPaused = false;
    kept = [];
    held = [];
  },

  /** The daemon was started anew: its numbers begin again. */
  reconnect() {
    if (source === null) return;
    source.close();
    open();
  },
};

function open() {
  kept = [];
  held = [];
  document.querySelector(".log")?.replaceChildren();
  source = new EventSource(`/api/events?level=${chosen}`);
  source.onopen = () => {
    isOpen = true;
    tell();
  };
  source.onerror = () => {
    isOpen = false;
    tell();
  };
  source.onmessage = (message) => take(JSON.parse(message.data));
  source.addEventListener("missed", (message) => take(JSON.parse(message.data)));
}

function choose(name) {
  chosen = name;
  source?.close();
  open();
}

const pauseText = () => (isPaused ? "Go on" : "Pause");

function pause() {
  isPaused = !isPaused;
  document.getElementById("pause").textContent = pauseText();
  if (!isPaused) {
    const waiting = held;
    held = [];
    waiting.forEach(put);
  }
  tell();
}

function take(event) {
  if (kept.some((one) => one.seq !== undefined && one.seq === event.seq)) return;
  kept.push(event);
  if (kept.length > KEPT_MAX) kept.shift();
  if (isPaused) held.push(event);
  else put(event);
  tell();
}

function put(event) {
  const log = document.querySelector(".log");
  if (!log) return;
  log.prepend(event.missed === undefined ? line(event) : h("li", { class: "missed" }, `at most ${count(event.missed, "event")} made way before they could be shown`));
  while (log.children.length > KEPT_MAX) log.lastChild.remove();
}

function tell() {
  const place = document.getElementById("line");
  if (!place) return;
  const text = !isOpen ? "waiting for the node …" : isPaused ? `paused, ${held.length} waiting` : "live";
  if (place.textContent !== text) place.textContent = text;
}

/** One event as a row; `without`: fields that need not be said. */
export function line(event, without = []) {
  const fields = [...Object.entries(event.fields), ...Object.entries(event.numbers)];
  return h("li", { class: `event ${event.level}`, "data-key": event.seq },
    h("time", { datetime: new Date(event.time * 1000).toISOString(), title: day(event.time) }, clock(event.time)),
    level(event.level),
    h("code", { class: "event-name" }, event.event),
    h("span", { class: "fields" },
      fields.filter(([name, value]) => value !== "" && !without.includes(name)).map(([name, value]) => h("span", { class: "field" }, h("span", { class: "quiet" }, `${name} `), ID.test(value) ? id(value) : String(value), " "))));
}

