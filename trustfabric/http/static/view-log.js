// The log of the selected run: appended to, kept at the newest line unless the reader has scrolled up.

import { byId, el, setHidden, setText } from "./dom.js";
import { clockTime, logParts } from "./text.js";

const AT_END_PX = 24;

export function logView() {
  const box = byId("log");
  const jump = byId("log-follow");
  let [following, shown] = [true, { runId: null, lines: [] }];
  box.addEventListener("scroll", () => {
    following = box.scrollHeight - box.scrollTop - box.clientHeight < AT_END_PX;
    setHidden(jump, following);
  });
  jump.addEventListener("click", () => {
    box.scrollTop = box.scrollHeight;
    box.focus();
  });

  return function render(log) {
    if (log === shown) return;
    if (log.runId !== shown.runId) following = true;
    if (log.lines !== shown.lines) append(box, log, shown);
    shown = log;
    setText(byId("log-note"), noteText(log));
    if (following) box.scrollTop = box.scrollHeight;
  };
}

function noteText({ lines, dropped }) {
  const kept = `${lines.length} line${lines.length === 1 ? "" : "s"}`;
  return dropped > 0 ? `newest ${kept}; ${dropped} earlier not shown` : kept;
}

// New lines nearly always come at the end: only what no longer fits in order is drawn again.
function append(box, log, shown) {
  const last = shown.lines.at(-1)?.seq ?? -Infinity;
  const from = log.lines.findIndex((line) => line.seq > last);
  const known = from < 0 ? log.lines.length : from;
  const offset = shown.lines.length - known;
  const continues = log.runId === shown.runId && offset >= 0 &&
    (known === 0 || (log.lines[0].seq === shown.lines[offset].seq && log.lines[known - 1] === shown.lines.at(-1)));
  if (!continues) {
    box.replaceChildren(...log.lines.map(lineNode));
    return;
  }
  for (let index = 0; index < offset; index += 1) box.firstElementChild.remove();
  box.append(...log.lines.slice(known).map(lineNode));
}

function lineNode({ seq, at, stream, message }) {
  const text = el("span.line-text");
  logParts(message).forEach(({ text: part, classes }) => {
    text.append(classes.length === 0 ? part : el("span", { class: classes.join(" ") }, part));
  });
  const known = ["stdout", "stderr", "system"].includes(stream) ? stream : "system";
  return el("div", { class: `line ${known}`, "data-seq": seq },
    el("span.line-seq", { "aria-hidden": "true" }, String(seq)), el("time.line-at", { datetime: at }, clockTime(at)), text);
}
