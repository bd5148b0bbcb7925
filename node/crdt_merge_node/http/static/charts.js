// Four small charts of the last hour: what the node kept, going on while the page is open.

import uPlot from "./vendor/uPlot.mjs";
import { h } from "./dom.js";
import { grouped, size } from "./format.js";

const HEIGHT = 120;
// Steps of an axis: whole numbers, and for bytes powers of two, so that the labels are round.
const STEPS = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const BYTE_STEPS = Array.from({ length: 60 }, (_, power) => 2 ** power);

const CHARTS = [
  { key: "operations", title: "Operations", format: grouped, lines: [["stored", "ink-1", (now) => now.operations]] },
  {
    key: "traffic",
    isBytes: true,
    title: "On the wire",
    format: (value) => `${size(value)}/s`,
    lines: [
      ["in", "ink-1", (now, before) => rate(now, before, "bytes_in")],
      ["out", "ink-2", (now, before) => rate(now, before, "bytes_out")],
    ],
  },
  { key: "missing", isBytes: true, title: "Missing bytes", format: size, lines: [["missing", "ink-3", (now) => now.missing_bytes]] },
  { key: "peers", title: "Connected peers", format: grouped, lines: [["peers", "ink-1", (now) => now.peers]] },
];

let container = null;
let samples = [];
let drawn = [];
let observer = null;

/** Bytes per second between two samples; nothing across a restart of the counter. */
function rate(now, before, name) {
  if (!before || now[name] < before[name] || now.time <= before.time) return null;
  return (now[name] - before[name]) / (now.time - before.time);
}

export const charts = {
  draw(element, history) {
    if (!element || history.schema !== "history/1") return;
    samples = history.samples;
    if (element !== container) {
      charts.forget();
      container = element;
      build();
    } else {
      update();
    }
  },

  redraw() {
    if (!container) return;
    const element = container;
    charts.forget();
    container = element;
    build();
  },

  forget() {
    observer?.disconnect();
    for (const { plot } of drawn) plot.destroy();
    drawn = [];
    container?.replaceChildren();
    container = null;
  },
};

function build() {
  container.replaceChildren();
  drawn = CHARTS.map((chart) => {
    const value = h("span", { class: "chart-value" });
    const canvas = h("div", { class: "chart-canvas", "aria-hidden": "true" });
    container.append(
      h("figure", { class: "chart" }, h("figcaption", {}, h("span", { class: "chart-title" }, chart.title), value), canvas),
    );
    const plot = new uPlot(options(chart, canvas), data(chart), canvas);
    return { chart, plot, value, canvas };
  });
  observer = new ResizeObserver(() => {
    for (const { plot, canvas } of drawn) plot.setSize({ width: canvas.clientWidth, height: HEIGHT });
  });
  observer.observe(container);
  tell();
}

function update() {
  for (const { chart, plot } of drawn) plot.setData(data(chart));
  tell();
}

function data(chart) {
  const lines = chart.lines.map(([, , read]) => samples.map((now, i) => read(now, samples[i - 1])));
  return [samples.map((now) => now.time), ...lines];
}

function tell() {
  const now = samples[samples.length - 1];
  const before = samples[samples.length - 2];
  for (const { chart, value } of drawn) {
    const parts = chart.lines.map(([label, , read]) => {
      const found = read(now, before);
      const text = found === null ? "-" : chart.format(found);
      return chart.lines.length > 1 ? `${text} ${label}` : text;
    });
    const text = parts.join(", ");
    if (value.textContent !== text) value.textContent = text;
  }
}

/** The colour that a name of the style sheet stands for at present. */
export function colour(name) {
  const probe = h("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function options(chart, canvas) {
  const quiet = colour("quiet");
  const grid = { stroke: colour("line-soft"), width: 1 };
  const font = "11px system-ui, sans-serif";
  return {
    width: canvas.clientWidth || 280,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 20, 0, 0],
    scales: { y: { range: (_plot, low, high) => range(low, high) } },
    series: [
      {},
      ...chart.lines.map(([label, ink], i) => ({
        label,
        stroke: colour(ink),
        width: 1.75,
        dash: i ? [5, 3] : undefined,
        fill: i ? undefined : colour(`${ink}-wash`),
        points: { show: samples.length < 3 },
        spanGaps: false,
      })),
    ],
    axes: [
      { stroke: quiet, font, grid: { show: false }, ticks: { show: false }, size: 22, space: 70, values: times },
      {
        stroke: quiet,
        font,
        grid,
        ticks: { show: false },
        incrs: chart.isBytes ? BYTE_STEPS : STEPS,
        size: 62,
        space: 34,
        values: (_plot, values) => values.map((value) => chart.format(value).replace(".0 ", " ")),
      },
    ],
  };
}

function times(_plot, values) {
  const isClose = values.length > 1 && values[1] - values[0] < 60;
  const parts = { hour: "2-digit", minute: "2-digit", second: isClose ? "2-digit" : undefined, hour12: false };
  return values.map((value) => new Date(value * 1000).toLocaleTimeString([], parts));
}

/** From nothing up: a flat line must not look like a mountain. */
function range(low, high) {
  if (low === null || high === null) return [0, 1];
  return [0, Math.max(high * 1.15, 1)];
}
