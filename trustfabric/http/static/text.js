// Text from outside made safe to show: nothing invisible, nothing unbounded, colours only from a list.

const LINE_LIMIT = 4000;
// Controls, bidi overrides and isolates, zero-width characters, line separators, byte order mark.
// eslint-disable-next-line no-control-regex
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// One of: CSI sequence, OSC/DCS/PM/APC string up to its terminator, any other two-character escape.
const ESCAPES =
  // eslint-disable-next-line no-control-regex
  /\u001b\[([0-?]*)[ -/]*([@-~])|(?:\u001b[\]PX^_]|[\u0090\u009d-\u009f])[^\u0007\u001b\u009c]*(?:\u0007|\u001b\\|\u009c|$)|\u001b[ -~]?/g;

const SGR = new Map([
  [1, "bold"], [2, "faint"], [3, "italic"], [4, "underline"],
  [30, "black"], [31, "red"], [32, "green"], [33, "yellow"],
  [34, "blue"], [35, "magenta"], [36, "cyan"], [37, "white"],
  [90, "faint"], [91, "red"], [92, "green"], [93, "yellow"],
  [94, "blue"], [95, "magenta"], [96, "cyan"], [97, "white"],
]);
const COLOURS = new Set(["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"]);

/** Show `value` as text: hidden characters become their code point, the rest is cut at `limit`. */
export function visible(value, limit = 500) {
  const text = value === null || value === undefined ? "" : String(value);
  const cut = text.length > limit ? `${text.slice(0, limit)} … (${text.length - limit} more)` : text;
  return cut.replace(HIDDEN, reveal);
}

function reveal(character) {
  if (character === "\t") return "    ";
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** Split a log line into `{text, classes}` parts: colours are kept, every other escape sequence is dropped. */
export function logParts(line) {
  const source = String(line ?? "").replace(/\r?\n$/, "");
  const bounded = source.slice(0, LINE_LIMIT);
  const parts = [];
  let styles = new Set();
  let position = 0;
  for (const match of bounded.matchAll(ESCAPES)) {
    push(parts, bounded.slice(position, match.index), styles);
    if (match[2] === "m") styles = restyled(styles, match[1]);
    position = match.index + match[0].length;
  }
  push(parts, bounded.slice(position), styles);
  if (source.length > LINE_LIMIT) {
    parts.push({ text: ` … (line cut, ${source.length - LINE_LIMIT} characters more)`, classes: ["sgr-faint"] });
  }
  return parts;
}

function push(parts, text, styles) {
  if (text === "") return;
  parts.push({ text: visible(text, LINE_LIMIT), classes: [...styles].map((name) => `sgr-${name}`) });
}

function restyled(styles, parameters) {
  if (!/^[\d;]*$/.test(parameters)) return styles;
  const next = new Set(styles);
  const codes = parameters.split(";").map(Number);
  if (codes.includes(38) || codes.includes(48)) return styles;
  for (const code of codes) {
    const name = SGR.get(code);
    if (code === 0) next.clear();
    else if (code === 39 || COLOURS.has(name)) COLOURS.forEach((colour) => next.delete(colour));
    if (name !== undefined) next.add(name);
  }
  return next;
}

/** `90` → `1:30`, `4000` → `1:06:40`, with `d` for whole days. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours}:${two(minutes)}:${two(whole % 60)}`;
  return `${minutes}:${two(whole % 60)}`;
}

/** A rough age in one unit, for labels that are read at a glance. */
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86400)} d`;
}

/** Clock time of an RFC 3339 instant in the reader's zone; the full instant belongs in a title. */
export function clockTime(instant) {
  const at = Date.parse(instant);
  return Number.isNaN(at) ? visible(instant, 40) : new Date(at).toLocaleTimeString([], { hour12: false });
}

/** Stored tags carry a prefix that says nothing on a page about remediation. */
export function shortTag(tag) {
  return visible(tag ?? "", 80).replace(/^remediation:/, "");
}
