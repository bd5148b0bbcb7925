// One group from all sides: who holds the same set, its policy, its contributions, the last resolve.

import { facts, h, id, state, table } from "./dom.js";
import { count, day, duration, short, size, weight } from "./format.js";
import { heatMap } from "./layers.js";
import { reason } from "./overview.js";
import { contributionState, contributionsText, convergedText, missingText, policyFacts, yesNo } from "./words.js";

const number = (text) => ({ cell: text, attributes: { class: "number" } });

export const groups = {
  name: "groups",
  title: "Groups",

  needs: () => ({}),

  render({ status }) {
    return [
      h("header", { "data-key": "head" },
        h("h1", { tabindex: -1 }, "Groups"),
        h("p", { class: "lead" }, status.groups.length ? `${count(status.groups.length, "group")}.` : "no groups: `group create` makes one"),
      ),
      status.groups.length
        ? h("section", { "data-key": "table", "aria-label": "Table" },
            table("Groups", ["Group", "ID", "Strategy", "Contributions", "Missing", "Root", "Converged", ""], status.groups.map((one) => ({
              key: one.id,
              cells: [
                h("a", { href: `#/groups/${one.id}`, class: "name" }, one.name),
                id(one.id),
                one.strategy || "-",
                contributionsText(one),
                missingText(one),
                id(one.sync_root),
                convergedText(one),
                one.is_followed ? "" : "not followed",
              ],
            }))),
            status.groups.filter((one) => one.unjudged).map((one) => h("p", {}, `${one.name} shows nothing: ${one.unjudged}`)),
          )
        : null,
    ].filter(Boolean);
  },
};

export const group = {
  name: "groups",
  title: "Group",
  isTolerant: true,

  needs(name) {
    const asked = encodeURIComponent(name);
    return {
      detail: `/api/group.json?group=${asked}`,
      roots: `/api/roots.json?group=${asked}`,
      why: `/api/why.json?group=${asked}`,
      layers: `/api/layers.json?group=${asked}`,
    };
  },

  render({ status, detail, roots, why, layers }) {
    if (detail.schema === "error/1") return absent(detail);
    const { info, policy, contributions, outputs } = detail;
    const found = why.groups?.[0];
    const used = contributions.filter((one) => one.state === "used").length;
    return [
      h("header", { "data-key": "head" },
        h("p", { class: "crumb" }, h("a", { href: "#/groups" }, "Groups")),
        h("h1", { tabindex: -1 }, info.name),
        h("p", { class: "lead" },
          found?.is_converged ? state("converged", "good", "●") : state("not converged", "warn", "◐"),
          ` ${info.converged_peers} of ${count(info.live_peers, "live peer")} at root `, id(info.sync_root), ". ",
          `${count(contributions.length, "contribution")}, ${used} ready to be resolved.`),
      ),
      found?.reasons.length
        ? h("section", { "data-key": "why", "aria-labelledby": "h-why" },
            h("h2", { id: "h-why" }, "What is missing, and why"),
            h("ol", { class: "reasons" }, found.reasons.map((one, i) => reason(one, why.now, i))))
        : null,
      h("section", { "data-key": "contributions", "aria-labelledby": "h-contributions" },
        h("h2", { id: "h-contributions" }, "Contributions"),
        contributions.length
          ? table("Contributions", ["State", "Tag", "Author", "Slot", "Type", number("Weight"), number("Size"), number("Missing"), "Reason"], contributions.map(contributionRow))
          : h("p", { class: "quiet" }, "no contributions: `contribution add` makes one"),
      ),
      h("section", { "data-key": "resolve", "aria-labelledby": "h-resolve" },
        h("h2", { id: "h-resolve" }, "The last resolve here"),
        lastResolve(layers, info, contributions)),
      h("div", { class: "columns", "data-key": "columns" },
        h("section", { "aria-labelledby": "h-policy" }, h("h2", { id: "h-policy" }, "Policy"), facts(policyFacts(policy))),
        h("section", { "aria-labelledby": "h-group" }, h("h2", { id: "h-group" }, "Group"),
          facts([
            ["id", id(info.id, 64)],
            ["followed", yesNo(info.is_followed)],
            ["operations", String(info.operations)],
            ["contributions", contributionsText(info)],
            ["missing", missingText(info)],
            ["sync root", info.sync_root && h("span", {}, id(info.sync_root), `, at ${convergedText(info)}`)],
            ["used root", info.used_root && id(info.used_root)],
            ["resolve key", info.resolve_key && id(info.resolve_key)],
            ["shows nothing", info.unjudged],
          ])),
      ),
      h("section", { "data-key": "roots", "aria-labelledby": "h-roots" },
        h("h2", { id: "h-roots" }, "Roots"),
        h("p", { class: "quiet" }, "Equal roots mean equal sets of operations. A peer's root is the last one it announced."),
        rootsTable(roots, status)),
      outputs.length
        ? h("section", { "data-key": "outputs", "aria-labelledby": "h-outputs" },
            h("h2", { id: "h-outputs" }, "Outputs that nodes announced"),
            table("Outputs", ["Node", "Resolve key", "Output digest", ""], outputs.map((one) => [
              id(one.node), id(one.resolve_key), id(one.output_digest, 24),
              one.is_agreeing ? state("agrees", "good", "●") : state("DIFFERS", "bad", "✕"),
            ])))
        : null,
    ].filter(Boolean);
  },
};

function absent(error) {
  return [
    h("p", { class: "crumb" }, h("a", { href: "#/groups" }, "Groups")),
    h("h1", { tabindex: -1 }, "Not found"),
    h("p", {}, `${error.code}: ${error.message}`),
    error.hint ? h("p", { class: "quiet" }, "hint: ", error.hint) : null,
  ].filter(Boolean);
}

function contributionRow(one) {
  return {
    key: one.tag,
    cells: [
      contributionState(one.state),
      id(one.tag),
      h("span", { class: "name" }, (one.author_name || short(one.author)) + (one.is_own ? " (this node)" : "")),
      one.slot,
      one.type,
      number(weight(one.weight)),
      number(one.nbytes ? size(one.nbytes) : "-"),
      number(missingText(one)),
      h("span", { class: "reason" }, one.reason),
    ],
  };
}

function rootsTable(roots, status) {
  if (roots.schema === "error/1") return null;
  const own = ["this node", id(roots.root), number(String(roots.operations)), "", ""];
  const rows = roots.peers.map((one) => ({
    key: one.peer,
    cells: [
      h("span", { class: "name" }, one.name || short(one.peer)),
      id(one.root),
      number(String(one.operations)),
      one.is_equal ? state("equal", "good", "●") : state("differs", "warn", "◐"),
      one.is_connected ? "connected" : "not connected",
    ],
  }));
  return table("Roots", ["Node", "Root", number("Operations"), "Compared", ""], [{ key: status.node, cells: own }, ...rows]);
}

function lastResolve(kept, info, contributions) {
  if (kept.schema === "error/1") {
    return h("p", { class: "quiet" }, "This node has not resolved the group. To do so: ", h("span", { class: "remedy" }, kept.hint));
  }
  const { resolve, layers, when } = kept;
  const isCurrent = resolve.resolve_key === info.resolve_key;
  return h("div", {},
    facts([
      ["when", `${day(when)}, in ${duration(resolve.duration_s)}`],
      ["is it current", h("span", {}, isCurrent ? state("yes", "good", "●") : state("no", "calm", "○"),
        isCurrent ? ": the group would resolve to the same bytes now" : ": the group or its policy changed since, or something was left out")],
      ["file", `${resolve.path}, ${size(resolve.nbytes)}`],
      ["output digest", id(resolve.output_digest, 64)],
      ["strategy", `${resolve.effective_strategy || resolve.strategy} ${resolve.strategy_version}`],
      ["inputs", String(resolve.inputs.length)],
      ["agreeing", `${count(resolve.agreeing.length, "other node")}`],
      ["disagreeing", resolve.disagreeing.length ? count(resolve.disagreeing.length, "other node") : ""],
      ["warnings", resolve.warnings.join("; ")],
    ]),
    layers
      ? heatMap(layers, names(resolve.inputs, contributions))
      : h("p", { class: "quiet" }, "Its layers were not measured: that reads every input again. To do so: ",
          h("span", { class: "remedy" }, `crdt-merge-node resolve ${info.name} -o merged.safetensors --report layers.html`)),
  );
}

/** Digest → what people call the contribution. */
function names(inputs, contributions) {
  const found = new Map();
  for (const one of [...contributions, ...inputs]) {
    const author = one.author_name || short(one.author);
    found.set(one.digest, one.slot === "main" ? author : `${author}/${one.slot}`);
  }
  return found;
}
