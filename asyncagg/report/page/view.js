"use strict";
/* The part of the interval that the charts and the tables show; it is in the URL, after the #. */

const VIEW = { whole: null, range: null, step: 0, changed: [] };

/* Begin with the whole interval, or with the part in the URL; step: seconds of a point. */
function startView(whole, step) {
  Object.assign(VIEW, { whole, step });
  addEventListener("hashchange", readView);
  document.addEventListener("click", keepView);
  readView();
}

function inView(start, end) {
  return !VIEW.range || (start < VIEW.range[1] && end > VIEW.range[0]);
}

function shownRange() {
  return VIEW.range ?? VIEW.whole;
}

/* Show a range, rounded outwards to whole points; null for the whole interval. */
function setView(range) {
  const [first, last] = VIEW.whole;
  if (range) {
    const length = Math.max(VIEW.step, Math.min(range[1] - range[0], last - first));
    const from = Math.max(first, Math.min(range[0], last - length));
    const down = first + Math.floor((from - first) / VIEW.step + 1e-6) * VIEW.step;
    const up = first + Math.ceil((from + length - first) / VIEW.step - 1e-6) * VIEW.step;
    range = [down, Math.min(up, last)];
  }
  const all = !range || (range[0] <= first && range[1] >= last);
  // An entry of the history: "back" shows what was shown before.
  location.hash = all ? "" : `from=${stamp(range[0])}&to=${stamp(range[1])}`;
  readView();
}

function readView() {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (!location.hash || fields.has("from")) { // else it is a link to a section
    const range = [fields.get("from"), fields.get("to")].map(epochOfStamp);
    const valid = range.every(Number.isFinite) && range[0] < range[1] && inside(range);
    VIEW.range = valid ? range : null;
  }
  for (const each of VIEW.changed) each();
}

function inside([from, to]) {
  return from < VIEW.whole[1] && to > VIEW.whole[0];
}

/* Follow a link to a section without losing the range in the URL. */
function keepView(event) {
  const link = VIEW.range && event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  const target = document.querySelector(link.getAttribute("href"));
  target.scrollIntoView();
  target.focus();
}

/* Move the range by a part of its length, in whole points. */
function pan(part) {
  const [from, to] = shownRange();
  const by = Math.round((part * (to - from)) / VIEW.step) * VIEW.step;
  setView([from + by, to + by]);
}

function zoom(factor) {
  const [from, to] = shownRange();
  const half = ((to - from) * factor) / 2;
  setView([(from + to) / 2 - half, (from + to) / 2 + half]);
}

/* The buttons for those who do not drag, and what is shown. */
function viewBar() {
  const shown = make("p", { class: "found", role: "status", id: "view" });
  const actions = [
    ["Earlier", () => pan(-0.5)], ["Later", () => pan(0.5)],
    ["Zoom in", () => zoom(0.5)], ["Zoom out", () => zoom(2)],
    ["Whole interval", () => setView(null)],
  ];
  const buttons = actions.map(([label, act]) => {
    const button = make("button", { type: "button" }, label);
    button.addEventListener("click", act);
    return button;
  });
  const update = () => {
    shown.textContent = VIEW.range ? `Shown: ${period(...VIEW.range)}; the tables, too` : "Shown: the whole interval";
    buttons.forEach((button, place) => { button.disabled = !VIEW.range && place !== 2; });
  };
  VIEW.changed.push(update);
  return make("div", { class: "view" }, ...buttons, shown);
}
