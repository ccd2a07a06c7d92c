// The page's pure modules under node; run by test_modules.py.

import assert from "node:assert/strict";
import { test } from "node:test";

const at = (name) => new URL(`../../trustfabric/http/static/${name}.js`, import.meta.url).href;
const { EventStream, FrameParser, backoff } = await import(at("sse"));
const { initialState, mergeRun, orderedRuns, reduce } = await import(at("store"));
const { counts, freshness, pageOf, shownTrust } = await import(at("fleet"));
const { alive, changed, newConnection, standing } = await import(at("connection"));
const { logParts, visible, duration, age } = await import(at("text"));

const NOON = Date.parse("2026-01-01T12:00:00Z");
const row = (id, fields = {}) => ({
  vm_instance_id: id, server_name: `s${id}`, instance_id: `vm-${id}`, version: 1,
  lifecycle_state: "restored", attestation_status: "trusted", ...fields,
});
const trust = (...frames) => ({ type: "trust-frames", frames });
const frame = (data) => ({ event: "trust", data });
const BOOKMARK = { event: "bookmark", data: null };

function parsed(...pieces) {
  const frames = [];
  const parser = new FrameParser({ onFrame: (each) => frames.push(each), onRetry: (ms) => frames.push(ms) });
  pieces.forEach((piece) => parser.push(piece));
  return frames;
}

test("frames are the same however the bytes are cut", () => {
  const text = 'retry: 500\n\n: beat\n\nid: 7\nevent: trust\ndata: {"a":1}\r\n\r\ndata: x\rdata: y\r\rid: 8\nevent: bookmark\n\n';
  const whole = parsed(text);

  assert.deepEqual(whole, [
    500, { id: "7", event: "trust", data: '{"a":1}' }, { id: null, event: "message", data: "x\ny" },
    { id: "8", event: "bookmark", data: "" },
  ]);
  for (let cut = 0; cut <= text.length; cut += 1) assert.deepEqual(parsed(text.slice(0, cut), text.slice(cut)), whole);
  assert.deepEqual(parsed(...text), whole);
});

test("a half frame is not handed over, and an id with NUL is ignored", () => {
  assert.deepEqual(parsed("id: 1\ndata: x\n"), []);
  assert.deepEqual(parsed("id: 1\0\ndata: x\n\n"), [{ id: null, event: "message", data: "x" }]);
});

// A server that answers each connection with the next of `answers`, then refuses; resolves to what it was asked.
async function conversation(...answers) {
  const asked = [];
  const real = globalThis.fetch;
  globalThis.fetch = async (url, { headers }) => {
    asked.push([url, headers["Last-Event-ID"] ?? null]);
    const answer = answers.shift();
    return answer === undefined ? new Response("", { status: 401 }) : new Response(`retry: 1\n\n${answer}`);
  };
  const stream = new EventStream({
    url: "/s", snapshotUrl: "/s?snapshot=true", onFrame() {}, onAlive() {},
    onState: ({ state }) => { if (state === "waiting") setTimeout(() => stream.hurry()); },
  });
  await stream.run();
  globalThis.fetch = real;
  return asked;
}

test("a stream resumes where it was, but never in the middle of a snapshot", async () => {
  const half = "id: 5\nevent: trust\ndata: {}\n\n";
  const whole = `${half}id: 5\nevent: bookmark\ndata: {}\n\n`;

  assert.deepEqual(await conversation(half, whole, "id: 6\nevent: trust\ndata: {}\n\n"), [
    ["/s?snapshot=true", null], ["/s?snapshot=true", null], ["/s", "5"], ["/s", "6"]]);
});

test("after a reset a stream starts from a snapshot again", async () => {
  const whole = "id: 5\nevent: bookmark\ndata: {}\n\n";

  assert.deepEqual(await conversation(whole, "id: 9\nevent: reset\ndata: {}\n\nid: 9\nevent: trust\ndata: {}\n\n"), [
    ["/s?snapshot=true", null], ["/s", "5"], ["/s?snapshot=true", null]]);
});

test("a list is read to its last page, and only from this runtime", async () => {
  const { getAll } = await import(at("api"));
  const real = globalThis.fetch;
  const pages = [
    [[1, 2], '</api/x?limit=2&cursor=2>; rel="next"'], [[3], "<https://evil.example/api/x>; rel=next"]];
  const asked = [];
  globalThis.fetch = async (path) => {
    asked.push(path);
    const [items, link] = pages.shift();
    return new Response(JSON.stringify(items), { headers: { Link: link } });
  };
  const items = [];
  for await (const item of getAll("/api/x?limit=2")) items.push(item);
  globalThis.fetch = real;

  assert.deepEqual([items, asked], [[1, 2, 3], ["/api/x?limit=2", "/api/x?limit=2&cursor=2"]]);
});

test("backoff grows to its ceiling and is never zero", () => {
  assert.equal(backoff(1, 1000, () => 0), 500);
  assert.equal(backoff(3, 1000, () => 1), 4000);
  assert.equal(backoff(99, 1000, () => 1), 30000);
  assert.ok(backoff(1, 0, () => 0) > 0);
});

test("an older version never replaces a newer row", () => {
  let state = reduce(initialState(), trust(frame(row(1, { version: 5, lifecycle_state: "quarantined" }))));
  state = reduce(state, trust(frame(row(1, { version: 4 }))));

  assert.equal(state.fleet.get(1).lifecycle_state, "quarantined");
});

test("a new snapshot drops what it does not name, at its bookmark and not before", () => {
  let state = reduce(initialState(), { type: "trust-connected", resumed: false });
  state = reduce(state, trust(frame(row(1)), frame(row(2)), BOOKMARK));
  state = reduce(state, { type: "trust-connected", resumed: false });
  state = reduce(state, trust(frame(row(2))));
  assert.deepEqual([...state.fleet.keys()], [1, 2]);

  state = reduce(state, trust(BOOKMARK));

  assert.deepEqual([...state.fleet.keys()], [2]);
});

test("a bookmark on a resumed stream drops nothing, a terminated instance leaves", () => {
  let state = reduce(initialState(), trust(frame(row(1)), frame(row(2)), BOOKMARK));
  state = reduce(state, { type: "trust-connected", resumed: true });
  state = reduce(state, trust(BOOKMARK, frame(row(2, { version: 2, terminated_at: "2026-01-01T11:00:00Z" }))));

  assert.deepEqual([...state.fleet.keys()], [1]);
});

test("reducing leaves the state before as it was", () => {
  const before = reduce(initialState(), trust(frame(row(1))));
  reduce(before, trust(frame(row(2))));
  assert.equal(before.fleet.size, 1);
});

test("who is no longer among the living leaves, unless there was news of it meanwhile", () => {
  let state = reduce(initialState(), trust(frame(row(1)), frame(row(2)), frame(row(3))));
  const versions = new Map([...state.fleet].map(([id, { version }]) => [id, version]));
  state = reduce(state, trust(frame(row(3, { version: 2 })), frame(row(4))));

  state = reduce(state, { type: "living", ids: new Set([1]), versions });

  assert.deepEqual([...state.fleet.keys()], [1, 3, 4]);
});

const status = (run, change) => ({ event: "remediation", data: { run_id: run, instance_id: 1, playbook: "p", event: { event: "status", ...change } } });
const line = (run, seq) => ({ event: "remediation", data: { run_id: run, instance_id: 1, event: { event: "log", seq, message: `m${seq}` } } });

test("an event makes a run unsettled until a record asked for later arrives", () => {
  let state = reduce(initialState(), { type: "runs-loaded", runs: [{ id: 9, status: "pending", version: 1 }], requestedAt: 1 });
  state = reduce(state, { type: "remediation-frames", frames: [status(9, { status: "running" })], at: 10 });
  assert.equal(state.runs.get(9).patchedAt, 10);

  const old = reduce(state, { type: "runs-loaded", runs: [{ id: 9, status: "pending", version: 1 }], requestedAt: 9 });
  const fresh = reduce(state, { type: "runs-loaded", runs: [{ id: 9, status: "running", version: 2 }], requestedAt: 11 });

  assert.equal(old.runs.get(9).status, "running");
  assert.equal(old.runs.get(9).patchedAt, 10);
  assert.equal(fresh.runs.get(9).patchedAt, null);
  assert.equal(mergeRun({ id: 9, version: 3 }, { id: 9, version: 2 }, 99).version, 3);
});

test("log lines are kept in order of seq, each once, whatever way they came", () => {
  let state = reduce(initialState(), { type: "log-selected", runId: 9 });
  state = reduce(state, { type: "remediation-frames", frames: [line(9, 4), line(9, 5), line(8, 1)], at: 1 });
  state = reduce(state, { type: "log-loaded", runId: 9, lines: [1, 2, 4].map((seq) => ({ seq, kind: "log", message: `m${seq}` })) });
  state = reduce(state, { type: "log-loaded", runId: 8, lines: [{ seq: 7, message: "other run" }] });

  assert.deepEqual(state.log.lines.map(({ seq }) => seq), [1, 2, 4, 5]);
});

test("the log and the runs are bounded, and active runs are never the ones dropped", () => {
  let state = reduce(initialState(), { type: "log-selected", runId: 9 });
  state = reduce(state, { type: "log-loaded", runId: 9, lines: Array.from({ length: 2500 }, (_, seq) => ({ seq, message: "x" })) });
  assert.deepEqual([state.log.lines.length, state.log.dropped, state.log.lines[0].seq], [2000, 500, 500]);

  const runs = Array.from({ length: 700 }, (_, id) => ({ id, version: 1, status: id === 0 ? "running" : "completed" }));
  state = reduce(state, { type: "runs-loaded", runs, requestedAt: 1 });
  assert.deepEqual([state.runs.size, state.runs.has(0), state.runs.has(699)], [500, true, true]);
});

test("runs that wait for a person come first", () => {
  const runs = new Map([[1, { id: 1, status: "pending", approval_state: "pending" }], [2, { id: 2, status: "running" }], [3, { id: 3, status: "failed" }]]);
  assert.deepEqual(orderedRuns(runs).map(({ id }) => id), [1, 2, 3]);
});

test("stale means deadline at or before now, and stale is never shown as trusted", () => {
  const due = row(1, { freshness_deadline: "2026-01-01T12:00:00Z" });

  assert.equal(freshness(due, NOON - 1).kind, "soon");
  assert.equal(shownTrust(due, NOON - 1), "trusted");
  assert.equal(freshness(due, NOON).kind, "stale");
  assert.equal(shownTrust(due, NOON), "expired");
  assert.equal(shownTrust({ ...due, stale: true }, NOON - 500), "expired");
  assert.equal(freshness(row(1), NOON).kind, "none");
});

test("a page is bounded, attention comes first, and a page past the end is the last", () => {
  const fleet = new Map(Array.from({ length: 120 }, (_, id) => [id, row(id, { lifecycle_state: id === 77 ? "quarantined" : "restored" })]));
  const query = { filter: { state: "all", text: "" }, order: "attention", page: 0, size: 50 };

  const first = pageOf(fleet, query, NOON);
  assert.deepEqual([first.rows.length, first.rows[0].vm_instance_id, first.matched, first.pages], [50, 77, 120, 3]);
  assert.deepEqual([pageOf(fleet, { ...query, page: 9 }, NOON).page, pageOf(fleet, { ...query, page: 2 }, NOON).rows.length], [2, 20]);
  assert.equal(pageOf(fleet, { ...query, filter: { state: "all", text: "vm-119" } }, NOON).matched, 1);
  assert.deepEqual(counts(fleet.values(), NOON), { all: 120, stale: 0, quarantined: 1, remediating: 0, suspect: 0, restored: 119 });
});

test("a silent stream is not live, a lagging one is not until it was served for a while", () => {
  const live = changed(newConnection("stream"), { state: "live" }, 1000);
  const lagging = changed(live, { state: "lagging" }, 2000);

  assert.equal(standing(live, 2000).level, "live");
  assert.equal(standing(live, 22000).level, "late");
  assert.equal(standing(alive(live, 21000), 22000).level, "live");
  assert.equal(standing(alive(lagging, 2100), 2200).level, "late");
  assert.equal(standing(alive(lagging, 7100), 7200).level, "live");
  assert.equal(standing(changed(live, { state: "waiting", reason: "closed", retryInMs: 4000 }, 2000), 3000).text, "closed, retry in 3 s");
  assert.equal(standing(changed(live, { state: "connecting" }, 2000), 3000).level, "down");
});

test("hidden characters are shown, and long text is cut with a marker", () => {
  assert.equal(visible("a\u202eb\u0000\u001b\u200b\ufeff\nc"), "a⟨U+202E⟩b␀␛⟨U+200B⟩⟨U+FEFF⟩␊c");
  assert.equal(visible("x".repeat(600)).length, 500 + " … (100 more)".length);
  assert.equal(visible(null), "");
});

const words = (text) => logParts(text).map((part) => part.text).join("");

test("S16: of escape sequences only colours are left", () => {
  assert.deepEqual(logParts("a\u001b[31mred\u001b[0m b"), [
    { text: "a", classes: [] }, { text: "red", classes: ["sgr-red"] }, { text: " b", classes: [] }]);
  assert.equal(words("\u001b]8;;https://evil.example\u0007click\u001b]8;;\u0007"), "click");
  assert.equal(words("x\u001b]52;c;ZXZpbA==\u001b\\y"), "xy");
  assert.equal(words("x\u001b[2J\u001b[1;1Hy\u001b[?25lz"), "xyz");
  assert.equal(words("50%\rdone"), "50%␍done");
  assert.deepEqual(logParts("\u001b[38;5;1mx\u001b[31;1my\u001b[39mz").map(({ classes }) => classes.join()), ["", "sgr-red,sgr-bold", "sgr-bold"]);
  assert.ok(words("x".repeat(1e6)).length < 5000);
  assert.match(words("x".repeat(5000)), /line cut, 1000 characters more/);
});

test("S16: hostile escapes take linear time", () => {
  const began = performance.now();
  logParts("\u001b]".repeat(2000));
  logParts(`\u001b[${"1;".repeat(1900)}m`);
  assert.ok(performance.now() - began < 200);
});

test("durations and ages", () => {
  assert.deepEqual([duration(5), duration(90), duration(4000), duration(90000), duration(-3)], ["0:05", "1:30", "1:06:40", "1 d 1 h", "0:00"]);
  assert.deepEqual([age(5), age(150), age(7300), age(200000)], ["5 s", "2 min", "2 h", "2 d"]);
});
