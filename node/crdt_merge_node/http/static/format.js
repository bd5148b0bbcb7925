// Numbers as the command line prints them (cli/output.py); a test compares the two.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

// Control characters, and marks that turn the direction of writing or hide: made visible, as in a terminal.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f]|[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Text of another machine, with what cannot be seen made visible; line ends stay. */
export function clean(text) {
  return text.replace(HIDDEN, (one) => {
    const code = one.charCodeAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

export function short(identifier) {
  return identifier.slice(0, 12) || "-";
}

export function size(nbytes) {
  let unit = 0;
  while (Math.abs(nbytes) >= 1024 && unit < UNITS.length - 1) {
    nbytes /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${fixed(nbytes, 0)} ${UNITS[unit]}` : `${fixed(nbytes, 1)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${fixed(Math.max(seconds, 0), 1)} s`;
  if (seconds < 60) return `${fixed(seconds, 0)} s`;
  let whole = Math.floor(seconds);
  let minutes = Math.floor(whole / 60);
  whole %= 60;
  if (minutes < 60) return whole ? `${minutes} min ${whole} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  minutes %= 60;
  if (hours < 48) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** How long ago `then` was, in whole seconds; a dash if it never was. */
export function age(now, then) {
  if (!then) return "-";
  return duration(round(Math.max(now - then, 0))).replace(".0 s", " s");
}

export function count(number, noun) {
  return number === 1 ? `1 ${noun}` : `${grouped(number)} ${noun}s`;
}

export function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

export function params(values) {
  return Object.keys(values).sort().map((key) => `${key}=${values[key]}`).join(", ") || "-";
}

export function weight(value) {
  return String(Number(value.toPrecision(10)));
}

/** A time of day for people, in their own zone. */
export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function day(seconds) {
  return new Date(seconds * 1000).toLocaleString([], { hour12: false });
}

/** Half to even, as Python rounds. */
function round(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** With so many digits after the point, 0 or 1. Exact ties go to the even digit, as in Python. */
export function fixed(value, digits) {
  if (digits === 0) return String(round(value));
  const rest = Math.abs(value % 1);
  if (rest === 0.25 || rest === 0.75) return (round(value * 10) / 10).toFixed(1);
  return value.toFixed(digits);
}

/** With four significant digits, as Python's ".4g". */
export function general(value) {
  const rounded = Number(value.toPrecision(4));
  if (rounded === 0 || (Math.abs(rounded) >= 1e-4 && Math.abs(rounded) < 1e4)) return String(rounded);
  const [digits, power] = rounded.toExponential().split("e");
  return `${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}
