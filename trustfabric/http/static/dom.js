// The few DOM helpers the views share. Data reaches the page through text nodes and nothing else.

/** `el("button.primary", {type: "button", onclick: f}, "Text", child)`; on* are listeners, the rest attributes. */
export function el(shape, attributes = {}, ...children) {
  const [tag, ...classes] = shape.split(".");
  const node = document.createElement(tag);
  if (classes.length > 0) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

// Each setter writes only on a change: an untouched node costs no layout and keeps the reader's selection.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

export function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

/**
 * Make `parent` show `items` in order, one child per key, moving and reusing what is there.
 * `create(item)` returns `{node, update(item)}`; the views kept are in `cache`, a Map of the caller.
 */
export function reconcile(parent, cache, items, keyOf, create) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const wanted = new Set(items.map(keyOf));
  for (const [key, view] of cache) {
    if (wanted.has(key)) continue;
    view.node.remove();
    cache.delete(key);
  }
  let cursor = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let view = cache.get(key);
    if (view === undefined) {
      view = create(item);
      cache.set(key, view);
    }
    view.update(item);
    if (view.node === cursor) cursor = cursor.nextElementSibling;
    else parent.insertBefore(view.node, cursor);
  }
  // A node that was moved has lost the focus on the way.
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** A term and its description, for the fact lists. */
export function fact(label) {
  const value = el("dd");
  return { node: el("div.fact", {}, el("dt", {}, label), value), value };
}
