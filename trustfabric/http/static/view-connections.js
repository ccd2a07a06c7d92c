// The state of every source, and the banner that says when the page is no longer current.

import { standing } from "./connection.js";
import { byId, el, setAttr, setClass, setHidden, setText } from "./dom.js";
import { age } from "./text.js";

const LABELS = { trust: "Trust", remediation: "Remediation", actors: "Actors" };

/** `onRetry()` from the banner's button; `onNews(text)` once when a stream is lost or is back. */
export function connectionsView({ onRetry, onNews }) {
  const pills = new Map(Object.keys(LABELS).map((name) => [name, pill(LABELS[name])]));
  byId("connections").append(...[...pills.values()].map(({ node }) => node));
  byId("retry").addEventListener("click", onRetry);
  let lost = "";

  return function render(connections, nowMs) {
    const standings = {};
    for (const [name, view] of pills) {
      standings[name] = standing(connections[name], nowMs);
      view.update(standings[name]);
    }
    const dead = ["trust", "remediation"].filter((name) => standings[name].level !== "live" && standings[name].age !== null);
    const names = dead.map((name, index) => (index === 0 ? LABELS[name] : name)).join(" and ");
    setHidden(byId("stale-banner"), dead.length === 0);
    if (dead.length > 0) {
      const oldest = Math.max(...dead.map((name) => standings[name].age));
      setText(byId("stale-text"), `${names} not live: shown as it was ${age(oldest)} ago.`);
    }
    if (names !== lost) onNews(names === "" ? "All streams are live again." : `${names} not live.`);
    lost = names;
    return standings;
  };
}

function pill(label) {
  const [name, words] = [el("b", {}, label), el("span")];
  const node = el("li.pill", {}, el("i.dot", { "aria-hidden": "true" }), name, words);
  return {
    node,
    update({ level, text, age: seconds }) {
      setClass(node, `pill ${level}`);
      setText(words, seconds === null ? text : `${text} · ${age(seconds)}`);
      setAttr(node, "title", seconds === null ? null : `Last heard ${age(seconds)} ago`);
    },
  };
}
