"use strict";
/* Format numbers, times and untrusted text. Every value becomes a text node, never markup. */

const NUMBER = new Intl.NumberFormat("en");
const DAY = new Intl.DateTimeFormat("en-GB", {
  timeZone: "UTC", day: "numeric", month: "short", year: "numeric",
});
const CLOCK = new Intl.DateTimeFormat("en-GB", {
  timeZone: "UTC", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
});

/* An integer; one that a browser would round is a string of digits. */
function count(value) {
  return NUMBER.format(typeof value === "string" ? BigInt(value) : value);
}

/* A count with its noun: "1 file", "2 files". */
function counted(value, noun, plural = `${noun}s`) {
  return `${count(value)} ${Number(value) === 1 ? noun : plural}`;
}

function share(part, whole) {
  if (!Number(whole)) return "–";
  const percent = (100 * Number(part)) / Number(whole);
  if (percent > 0 && percent < 0.01) return "< 0.01 %";
  return `${percent.toLocaleString("en", { maximumFractionDigits: percent < 1 ? 2 : 1 })} %`;
}

/* Three significant digits. */
function digits(value) {
  return value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
}

/* Three significant digits without trailing zeros, for axes. */
function roundDigits(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function seconds(value, format = digits) {
  if (value === null) return "–";
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${format(value * 1e6)} µs`;
  if (value < 1) return `${format(value * 1e3)} ms`;
  if (value < 120) return `${format(value)} s`;
  if (value < 7200) return `${format(value / 60)} min`;
  return `${format(value / 3600)} h`;
}

function bytes(value, format = digits) {
  let rest = Number(value);
  if (rest < 1000) return `${roundDigits(rest)} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    rest /= 1000;
    if (rest < 1000) return `${format(rest)} ${unit}`;
  }
  return `${format(rest / 1000)} PB`;
}

/* A duration in whole minutes: "5 min", "2 h", "1 day". */
function minutes(value) {
  if (value % 1440 === 0) return counted(value / 1440, "day");
  if (value % 60 === 0) return `${count(value / 60)} h`;
  if (value > 60) return `${count(Math.floor(value / 60))} h ${value % 60} min`;
  return `${count(value)} min`;
}

function day(epoch) {
  return DAY.format(epoch * 1000);
}

function clock(epoch) {
  return CLOCK.format(epoch * 1000);
}

function moment(epoch) {
  return `${day(epoch)}, ${clock(epoch)}`;
}

function period(start, end) {
  return day(start) === day(end)
    ? `${day(start)}, ${clock(start)} – ${clock(end)}`
    : `${moment(start)} – ${moment(end)}`;
}

function epochOf(iso) {
  return Date.parse(iso) / 1000;
}

/* The time in the name of a window, 20251021t1400Z: its end. NaN if it is not such a name. */
function epochOfStamp(name) {
  const found = name?.match(/^(\d{4})(\d\d)(\d\d)t(\d\d)(\d\d)Z$/);
  if (!found) return NaN;
  const [, year, month, date, hour, minute] = found;
  return Date.UTC(year, month - 1, date, hour, minute) / 1000;
}

function stamp(epoch) {
  const digits = new Date(epoch * 1000).toISOString().replace(/[-:]/g, "");
  return `${digits.slice(0, 8)}t${digits.slice(9, 13)}Z`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // strings become text nodes
  return element;
}

/* Text from a file, with its writing direction isolated. */
function untrusted(text) {
  return make("bdi", {}, text);
}

/* A key, with invisible characters escaped: controls, and marks that change the direction. */
function key(text) {
  const hidden = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const code = (found) => `\\u${found.codePointAt(0).toString(16).padStart(4, "0")}`;
  return make("bdi", { class: "key" }, text.replace(hidden, code));
}
