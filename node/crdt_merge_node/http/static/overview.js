// Health first, then what is missing and why, then how the last hour went.

import { charts } from "./charts.js";
import { facts, h, id, state } from "./dom.js";
import { age, count, short, size } from "./format.js";
import { bySeverity, contributionsText, missingText, peersText, rootText, severity } from "./words.js";

const IDS_SHOWN_MAX = 8;

export const overview = {
  name: "overview",
  title: "Overview",

  needs: () => ({ why: "/api/why.json", history: "/api/history.json" }),

  render({ status, why }) {
    const name = status.name ? `“${status.name}”` : short(status.node);
    const waiting = why.groups.filter((one) => !one.is_converged);
    return [
      h(
        "header",
        { class: `hero ${status.is_healthy ? "good" : "bad"}`, "data-key": "hero" },
        h("h1", { tabindex: -1 }, status.is_healthy ? "Healthy" : "UNHEALTHY"),
        h("p", { class: "lead" }, `Node ${name}, up ${age(status.now, status.started)}. `, sentence(why.groups, waiting)),
      ),
      alarms(status),
      h("section", { "data-key": "groups", "aria-labelledby": "h-groups" },
        h("h2", { id: "h-groups" }, "Groups"),
        status.groups.length
          ? h("div", { class: "cards" }, status.groups.map((one) => card(one, why)))
          : h("p", { class: "quiet" }, "no groups: `group create` makes one"),
      ),
      h("section", { "data-key": "charts", "aria-labelledby": "h-hour" },
        h("h2", { id: "h-hour" }, "The last hour"),
        h("div", { class: "charts", "data-keep": "charts" }),
      ),
      h("section", { "data-key": "node", "aria-labelledby": "h-node" },
        h("h2", { id: "h-node" }, "Node"),
        facts(nodeFacts(status)),
      ),
    ].filter(Boolean);
  },

  after(main, { history }) {
    charts.draw(main.querySelector(".charts"), history);
  },

  theme: () => charts.redraw(),
  left: () => charts.forget(),
};

function sentence(groups, waiting) {
  if (!groups.length) return "It knows no group yet.";
  if (!waiting.length) return `${["", "Its one group is", "Both groups are"][groups.length] ?? `All ${groups.length} groups are`} converged.`;
  const names = waiting.map((one) => one.name).sort().join(", ");
  return `${waiting.length} of ${count(groups.length, "group")} not converged: ${names}.`;
}

function alarms(status) {
  if (!status.alarms.length) return null;
  return h("section", { "data-key": "alarms", "aria-labelledby": "h-alarms" },
    h("h2", { id: "h-alarms" }, "Alarms"),
    h("ul", { class: "alarms", role: "list" },
      [...status.alarms].sort(bySeverity).map((alarm, i) =>
        h("li", { "data-key": `${i} ${alarm.code}`, class: alarm.severity === "warning" ? "warn" : "bad" },
          h("p", { class: "alarm-head" }, severity(alarm.severity), " ", h("code", {}, alarm.code),
            alarm.since ? h("span", { class: "quiet" }, ` for ${age(status.now, alarm.since)}`) : null),
          h("p", {}, alarm.message),
          alarm.hint && h("p", { class: "hint" }, "hint: ", alarm.hint),
        ),
      ),
    ),
  );
}

function card(group, why) {
  const found = why.groups.find((one) => one.group === group.id);
  const isConverged = found?.is_converged ?? group.is_converged;
  return h("article", { class: "card", "data-key": group.id },
    h("div", { class: "card-head" },
      h("h3", {}, h("a", { href: `#/groups/${group.id}` }, group.name)),
      isConverged ? state("converged", "good", "●") : state("not converged", "warn", "◐"),
    ),
    h("p", { class: "quiet" }, found ? rootText(found) : "", !group.live_peers && isConverged ? "; no peer is connected, so nobody else was asked" : ""),
    facts([
      ["contributions", contributionsText(group)],
      ["missing", missingText(group)],
      ["strategy", group.strategy || "-"],
      ["operations", String(group.operations)],
      ["followed", group.is_followed ? "" : "not followed"],
      ["shows nothing", group.unjudged],
    ]),
    found?.reasons.length ? h("ol", { class: "reasons" }, found.reasons.map((one, i) => reason(one, why.now, i))) : null,
  );
}

export function reason(one, now, position) {
  const shown = one.missing.slice(0, IDS_SHOWN_MAX).map((each) => [id(each), " "]);
  const rest = one.missing.length - IDS_SHOWN_MAX;
  return h("li", { "data-key": `${position} ${one.subject}` },
    h("p", {}, one.subject_name && h("strong", {}, one.subject_name, " "), "(", id(one.subject), `) lacks ${one.lacks}`,
      one.since ? ` for ${age(now, one.since)}` : ""),
    facts([
      ["missing", shown.length ? h("span", {}, shown, rest > 0 ? `and ${rest} more` : "") : ""],
      ["waits", one.waiting],
      ["remedy", remedy(one.remedy)],
    ]),
  );
}

/** The commands in a remedy set apart from its words. */
function remedy(text) {
  const [, before, command] = text.match(/^(.*?)(crdt-merge-node .*)?$/s);
  return text && h("span", {}, before, command && h("code", { class: "remedy" }, command));
}

function nodeFacts(status) {
  const cluster = status.cluster_name ? `${status.cluster_name} (${short(status.cluster)})` : short(status.cluster);
  const advertised = status.advertise.join(", ");
  return [
    ["node", id(status.node, 64)],
    ["cluster", status.cluster ? cluster : ""],
    ["listen", advertised ? `${status.listen}, advertised as ${advertised}` : status.listen],
    ["peers", peersText(status.peers) || "no peers: `invite` prints what to run on the next machine"],
    ["data", `${status.data_dir}: ${size(status.store_bytes)}, ${size(status.free_bytes)} free`],
    ["wire", `${size(status.bytes_in)} in, ${size(status.bytes_out)} out since the start`],
    ["version", status.version ? `${status.version}, process ${status.pid}` : ""],
  ];
}
