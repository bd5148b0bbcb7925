// The frame: which view is shown, asking the node again and again, and saying so when it does not answer.

import { facts, h, id, morphChildren } from "./dom.js";
import { age, clean, clock, short } from "./format.js";
import { events } from "./events.js";
import { group, groups } from "./groups.js";
import { overview } from "./overview.js";
import { peer, peers } from "./peers.js";

const POLL_MS = 2000;
const HIDDEN_POLL_MS = 20000;
const TIMEOUT_MS = 8000;

const main = document.getElementById("main");
const gone = document.getElementById("gone");
const foot = document.getElementById("foot");

let view = overview;
let argument = "";
let timer = 0;
let turn = 0;
let answeredAt = 0;
let process = "";

function route() {
  const [, name = "", rest = ""] = location.hash.match(/^#\/([a-z]*)(?:\/(.*))?$/) ?? [];
  if (name === "groups" && rest) return [group, rest];
  if (name === "peers" && rest) return [peer, rest];
  return [{ peers, groups, events }[name] ?? overview, ""];
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  const found = await answer.json();
  if (!answer.ok && found.schema !== "error/1") throw new Error(`${path}: ${answer.status}`);
  return found;
}

/** Ask for everything that the view shows, then show it. A later turn makes an earlier one void. */
async function refresh() {
  clearTimeout(timer);
  const mine = ++turn;
  const asked = { status: "/api/status.json", ...view.needs(argument) };
  try {
    const found = await Promise.all(Object.values(asked).map(ask));
    if (mine !== turn) return;
    const documents = Object.fromEntries(Object.keys(asked).map((name, i) => [name, found[i]]));
    answered(documents.status);
    show(documents);
  } catch (error) {
    if (mine !== turn) return;
    unanswered(error);
  }
  timer = setTimeout(refresh, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
}

function show(documents) {
  const failed = Object.values(documents).find((found) => found.schema === "error/1");
  const nodes = failed && !view.isTolerant ? problem(failed) : view.render(documents, argument);
  morphChildren(main, nodes);
  if (!failed || view.isTolerant) view.after?.(main, documents);
}

function problem(error) {
  return [
    h("h1", { tabindex: -1 }, "Not found"),
    h("p", {}, `${error.code}: ${error.message}`),
    error.hint && h("p", { class: "quiet" }, "hint: ", error.hint),
    h("p", {}, h("a", { href: "#/groups" }, "All groups")),
  ].filter(Boolean);
}

function answered(status) {
  const isBack = !gone.hidden && answeredAt > 0;
  const present = `${status.node} ${status.pid} ${status.started}`;
  answeredAt = Date.now();
  gone.hidden = true;
  gone.textContent = "";
  document.body.classList.remove("is-gone");
  if (isBack || (process && process !== present)) events.reconnect();
  process = present;
  const name = status.name || short(status.node);
  document.getElementById("brand").textContent = clean(name);
  const mark = status.is_healthy ? "" : "UNHEALTHY · ";
  document.title = clean(`${mark}${view.title} · ${name} · crdt-merge-node`);
  morphChildren(foot, [
    facts([
      ["node", id(status.node)],
      ["cluster", status.cluster_name || short(status.cluster)],
      ["version", status.version],
      ["up", age(status.now, status.started)],
    ]),
    h("p", {}, "Read-only: ", h("code", {}, "crdt-merge-node"), " changes things."),
  ]);
}

function unanswered(error) {
  const since = answeredAt ? `has not answered since ${clock(answeredAt / 1000)}; what is shown is from then` : "does not answer";
  const text = `The node ${since}. Asking again every ${POLL_MS / 1000} s.`;
  gone.title = String(error);
  if (gone.textContent !== text) gone.textContent = text;
  gone.hidden = false;
  document.body.classList.add("is-gone");
}

function navigate() {
  view.left?.();
  [view, argument] = route();
  for (const link of document.querySelectorAll("#views a")) {
    const isHere = link.dataset.view === view.name;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren(h("p", { class: "quiet" }, "Asking the node …"));
  scrollTo(0, 0);
  return refresh();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();  // The part after # names the view.
  main.focus();
});
addEventListener("hashchange", async () => {
  await navigate();
  (main.querySelector("h1") ?? main).focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
document.addEventListener("theme", () => view.theme?.());
navigate();
