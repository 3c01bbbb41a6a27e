"use strict";
/* Fill the page with the data. */

const DATA = JSON.parse(document.getElementById("data").textContent);

function append(id, ...children) {
  document.getElementById(id).append(...children);
}

function hide(id) {
  document.getElementById(id).hidden = true;
}

function showHead() {
  const [since, until] = [DATA.since, DATA.until].map((iso) => iso && moment(epochOf(iso)));
  if (DATA.start) {
    append("interval", `${period(epochOf(DATA.start), epochOf(DATA.end))} UTC`);
  } else if (since || until) {
    append("interval", [since && `from ${since}`, until && `to ${until}`].filter(Boolean).join(" "), " UTC");
  }
  append("store", key(DATA.store));
  append("made", `Made ${moment(epochOf(DATA.created))} UTC by ${document.querySelector("[name=generator]").content}.`);
}

/* ------------------------------------------------------------------ at a glance */

function showNotes() {
  const { windows, totals, unreadable } = DATA;
  const note = (kind, mark, text, target) => {
    const words = target ? make("a", { href: `#${target}` }, text) : text;
    const sign = make("span", { class: "mark", "aria-hidden": "true" }, mark);
    append("notes", make("li", { class: kind }, sign, words));
  };
  const all = counted(windows.present, "window");
  if (unreadable.count) {
    note("bad", "!", `${counted(unreadable.count, "aggregate")} could not be read`, "unreadable");
  }
  if (windows.missing) {
    note("warn", "!", `${counted(windows.missing, "window")} missing, ${count(windows.present)} present`, "gaps");
  } else {
    note("good", "✓", `${all}, none missing`);
  }
  if (Number(totals.files.quarantined)) {
    note("warn", "!", `${counted(totals.files.quarantined, "file")} quarantined`, "quarantine");
  } else {
    note("good", "✓", "No files quarantined");
  }
  if (Number(totals.files.late)) {
    note("info", "i", `${counted(totals.files.late, "late file")}, counted`, "chart-trouble");
  }
}

function showCards() {
  const { totals, windows } = DATA;
  const time = totals.processing_time;
  const packs = DATA.packs.count ? `, in ${counted(DATA.packs.count, "pack")} of ${bytes(DATA.packs.bytes)}` : "";
  const card = (field, label, value, more = "") => {
    const shown = make("dd", { class: "figure", "data-field": field }, value);
    append("cards", make("div", {}, make("dt", {}, label), shown, make("dd", { class: "more" }, more)));
  };
  const runs = `in ${counted(windows.present, "window")} of ${minutes(DATA.window_minutes)}`;
  const rate = (part) => `${share(part, totals.total_opportunities)} of opportunities`;
  card("files.counted", "Run files counted", count(totals.files.counted), runs);
  card("total_opportunities", "Opportunities", count(totals.total_opportunities), "examined by these runs");
  card("total_matches", "Matches", count(totals.total_matches), rate(totals.total_matches));
  card("total_no_matches", "No match", count(totals.total_no_matches), rate(totals.total_no_matches));
  card("total_errors", "Errors", count(totals.total_errors), rate(totals.total_errors));
  card("processing_time.p50", "Half of the runs (p50)", seconds(time.p50), `mean ${seconds(time.mean)}`);
  card("processing_time.p90", "90 % of the runs (p90)", seconds(time.p90), `shortest ${seconds(time.min)}`);
  card("processing_time.p99", "99 % of the runs (p99)", seconds(time.p99), `longest ${seconds(time.max)}`);
  card("files.bytes", "Data read", bytes(totals.files.bytes), `${counted(totals.files.bytes, "byte")}${packs}`);
  card("files.late", "Late files", count(totals.files.late), "added to their windows");
  card("files.quarantined", "Quarantined files", count(totals.files.quarantined), "not in the totals");
  card("windows.missing", "Missing windows", count(windows.missing), `in ${counted(DATA.gaps.count, "gap")}`);
}

/* A bar of coloured parts: [class, from, to] each, in thousandths of its length. */
function strip(label, parts) {
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const drawn = svg("svg", {
    viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  for (const [name, from, to] of parts) {
    drawn.append(svg("rect", { class: name, x: from, width: Math.max(2, to - from), height: 10 }));
  }
  return drawn;
}

/* The outcomes of the opportunities, as shares. */
function showOutcome() {
  const { total_matches, total_no_matches, total_errors } = DATA.totals;
  const ends = [["match", "matched", total_matches], ["none", "no match", total_no_matches], ["error", "errors", total_errors]];
  const whole = Number(DATA.totals.total_opportunities);
  const known = ends.reduce((sum, [, , value]) => sum + Number(value), 0);
  const parts = [];
  let from = 0;
  for (const [name, , value] of ends) {
    const to = from + (1000 * Number(value)) / Math.max(whole, known);
    if (Number(value)) parts.push([name, from, to]);
    from = to;
  }
  if (!whole) {
    hide("outcome");
    return;
  }
  const words = ends.map(([, label, value]) => `${share(value, whole)} ${label}`);
  const legend = make("ul", { class: "legend" });
  ends.forEach(([name], index) => {
    legend.append(make("li", {}, make("span", { class: `swatch ${name}`, "aria-hidden": "true" }), words[index]));
  });
  append("outcome", make("p", { class: "label" }, "Outcomes of opportunities"), strip(words.join(", "), parts), legend);
}

/* The whole interval and its gaps. */
function showCoverage() {
  const start = epochOf(DATA.start);
  const length = epochOf(DATA.end) - start;
  const at = (iso) => (1000 * (epochOf(iso) - start)) / length;
  const { present, missing } = DATA.windows;
  const gaps = DATA.gaps.shown.map((gap) => ["gap", at(gap.start), at(gap.end)]);
  const label = `${counted(present, "window")} present, ${count(missing)} missing`;
  const ends = make("div", { class: "ends muted", "aria-hidden": "true" });
  ends.append(make("span", {}, moment(start)), make("span", {}, moment(start + length)));
  append("coverage", make("p", { class: "label" }, label), strip(label, [["present", 0, 1000], ...gaps]), ends);
}

/* ------------------------------------------------------------------ over time */

/* "Maximum in one window: 1,003 (21 Oct 2025, 13:05)." */
function peak(values, format) {
  let best = 0;
  values.forEach((value, index) => {
    if (Number(value) > Number(values[best])) best = index;
  });
  const one = DATA.points.minutes === DATA.window_minutes ? "window" : minutes(DATA.points.minutes);
  return Number(values[best])
    ? `Maximum in one ${one}: ${format(values[best])} (${pointName(DATA.points, best)}).`
    : "";
}

function showCharts() {
  const { points, totals } = DATA;
  const time = totals.processing_time;
  const merged = points.minutes !== DATA.window_minutes;
  append(
    "charts-text",
    merged
      ? `There are too many windows for one point each: each point covers ${minutes(points.minutes)}, with the sums and the quantiles of all its runs.`
      : `Each point is one window of ${minutes(DATA.window_minutes)}.`,
    " Shaded: no aggregate. Point at a chart to read its values, or open the table below it. Drag across a chart to zoom in, with the shift key to move; double-click to see everything.",
  );
  append("view-bar", viewBar());
  const sum = (field, label, color, overall, format = count, exact = count) =>
    ({ label, color, values: points[field], overall: format(overall), format, exact });
  const quantile = (field, dash) => ({
    label: field, color: field, dash, values: points[field], overall: seconds(time[field]),
    format: seconds, exact: (value) => (value === null ? "–" : `${digits(value)} s`),
  });
  const figures = [
    {
      name: "chart-matches", title: "Matches and no matches", bars: "stacked",
      description: `${share(totals.total_matches, totals.total_opportunities)} of ${counted(totals.total_opportunities, "opportunity", "opportunities")} matched. ${peak(points.matches, count)}`,
      series: [
        sum("no_matches", "No match", "none", totals.total_no_matches),
        sum("matches", "Matches", "match", totals.total_matches),
      ],
    },
    {
      name: "chart-opportunities", title: "Opportunities", bars: "plain",
      description: `${counted(totals.total_opportunities, "opportunity", "opportunities")} in total. ${peak(points.opportunities, count)}`,
      series: [sum("opportunities", "Opportunities", "total", totals.total_opportunities)],
    },
    {
      name: "chart-time", title: "Processing time of a run",
      format: (value) => seconds(value, roundDigits),
      description: time.count
        ? `Half of the runs took at most ${seconds(time.p50)}, 99 % at most ${seconds(time.p99)}, the longest ${seconds(time.max)}.`
        : "No run reported its processing time.",
      series: [quantile("p99", [2, 4]), quantile("p90", [8, 4]), quantile("p50", [])],
    },
    {
      name: "chart-errors", title: "Errors", bars: "plain",
      description: `${counted(totals.total_errors, "error")} in total, ${share(totals.total_errors, totals.total_opportunities)} of opportunities. ${peak(points.errors, count)}`,
      series: [sum("errors", "Errors", "error", totals.total_errors)],
    },
    {
      name: "chart-files", title: "Run files", bars: "plain",
      description: `${counted(totals.files.counted, "file")} counted. ${peak(points.counted, count)}`,
      series: [sum("counted", "Files", "files", totals.files.counted)],
    },
    {
      name: "chart-bytes", title: "Data read", bars: "plain",
      format: (value) => bytes(value, roundDigits),
      description: `${bytes(totals.files.bytes)} in total. ${peak(points.bytes, bytes)}`,
      series: [sum("bytes", "Bytes", "bytes", totals.files.bytes, bytes)],
    },
    {
      name: "chart-trouble", title: "Late and quarantined files", bars: "stacked",
      description: `${count(totals.files.late)} late, ${count(totals.files.quarantined)} quarantined.`,
      series: [
        sum("quarantined", "Quarantined", "quarantined", totals.files.quarantined),
        sum("late", "Late", "late", totals.files.late),
      ],
    },
  ];
  const scale = (value) => (Number.isInteger(value) ? short(value) : "");
  append("figures", ...figures.map((each) => chart({ format: scale, points, ...each })));
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });

function short(value) {
  return SHORT.format(value);
}

/* ------------------------------------------------------------------ tables */

function showMatches() {
  const { exact, shown } = DATA.top_matches;
  const rows = shown.map((match, index) => ({ ...match, rank: index + 1 }));
  if (!rows.length) {
    append("matches-text", "No run reported a match.");
    hide("matches-table");
    return;
  }
  append(
    "matches-text",
    `The first ${count(Math.min(exact, rows.length))} are the best of all run files.`,
    rows.length > exact ? ` The others are the best of the ${count(exact)} that each window keeps.` : "",
  );
  const made = table({
    name: "top-matches",
    span: windowSpan,
    caption: "The best matches and their run files",
    rows,
    columns: [
      { label: "Rank", numeric: true, value: (row) => row.rank, cell: (row) => count(row.rank) },
      {
        label: "Score", numeric: true, value: (row) => Number(row.score ?? -Infinity),
        cell: (row) => (row.score === null ? "–" : String(row.score)),
      },
      { label: "Match", value: (row) => row.label, cell: matchOf },
      { label: "Run file", value: (row) => row.key, cell: (row) => key(row.key) },
      {
        label: "Window", value: (row) => epochOfStamp(row.window), cell: (row) => windowOf(row.window),
      },
    ],
  });
  const field = search({
    name: "matches-search", label: "Search the matches", noun: "match", plural: "matches", rows,
    filter: made.filter,
    textOf: (row) => [row.label, row.key, row.window, ...row.fields.flat()].join("\n"),
  });
  append("matches-table", field, scrolling("Table of top matches", made.element), made.more);
  made.element.querySelector("th").setAttribute("aria-sort", "ascending");
}

function windowSpan({ window }) {
  const end = epochOfStamp(window);
  return [end - DATA.window_minutes * 60, end];
}

function windowOf(name) {
  return make("time", { datetime: new Date(epochOfStamp(name) * 1000).toISOString() }, moment(epochOfStamp(name)));
}

/* The label of a match, and all its fields on demand. */
function matchOf(row) {
  const title = row.label ? untrusted(row.label) : make("span", { class: "muted" }, "no title");
  const list = make("dl", { class: "fields" });
  for (const [name, text] of row.fields) {
    list.append(make("div", {}, make("dt", {}, untrusted(name)), make("dd", {}, untrusted(text))));
  }
  const more = row.more_fields ? [make("p", { class: "muted" }, `and ${counted(row.more_fields, "more field")}`)] : [];
  const summary = make("summary", {}, title);
  return make("details", { class: "match" }, summary, list, ...more);
}

function showQuarantine() {
  const { count: all, shown } = DATA.quarantined;
  if (!Number(all)) {
    append("quarantine-text", "None: every run file could be counted.");
    hide("quarantine-table");
    return;
  }
  const rest = Number(all) - shown.length;
  append(
    "quarantine-text",
    "Files that cannot be counted, and why. Their content is kept.",
    rest > 0 ? ` These are the newest ${count(shown.length)}; ${count(rest)} more are not shown.` : "",
  );
  if (!shown.length) {
    hide("quarantine-table");
    return;
  }
  const whereNow = (row) => {
    const state = { true: "", false: "no longer exists", null: "not known" }[row.there];
    const cell = make("div", {}, key(row.moved_to));
    if (state) cell.append(make("span", { class: "tag" }, state));
    return cell;
  };
  const made = table({
    name: "quarantined-files",
    span: windowSpan,
    caption: "Quarantined files, the newest window first",
    rows: shown,
    columns: [
      { label: "Run file", value: (row) => row.key, cell: (row) => key(row.key) },
      { label: "Reason", value: (row) => row.reason, cell: (row) => untrusted(row.reason) },
      { label: "Where it is now", value: (row) => row.moved_to, cell: whereNow },
      {
        label: "Window", value: (row) => epochOfStamp(row.window), cell: (row) => windowOf(row.window),
      },
    ],
  });
  const field = search({
    name: "quarantine-search", label: "Search the quarantined files", noun: "file", rows: shown,
    filter: made.filter, textOf: (row) => [row.key, row.reason, row.moved_to, row.window].join("\n"),
  });
  append("quarantine-table", field, scrolling("Table of quarantined files", made.element), made.more);
}

function showGaps() {
  const { count: all, shown } = DATA.gaps;
  if (!all) {
    append("gaps-text", "None: every window between the first and the last has an aggregate.");
    hide("gaps-table");
    return;
  }
  append(
    "gaps-text",
    "These windows have no aggregate: no run file arrived, or they are not settled yet.",
    all > shown.length ? ` These are the ${count(shown.length)} longest of ${count(all)} gaps.` : "",
  );
  const firstOf = (row) => epochOf(row.start) + DATA.window_minutes * 60;
  const made = table({
    name: "missing-windows",
    span: (row) => [epochOf(row.start), epochOf(row.end)],
    caption: "Gaps between the first and the last window",
    rows: shown,
    columns: [
      { label: "First window", value: firstOf, cell: (row) => moment(firstOf(row)) },
      { label: "Last window", value: (row) => epochOf(row.end), cell: (row) => moment(epochOf(row.end)) },
      { label: "Windows", numeric: true, value: (row) => row.windows, cell: (row) => count(row.windows) },
      {
        label: "Length", numeric: true, value: (row) => row.windows,
        cell: (row) => minutes((epochOf(row.end) - epochOf(row.start)) / 60),
      },
    ],
  });
  append("gaps-table", scrolling("Table of missing windows", made.element), made.more);
}

function showUnreadable() {
  const { count: all, shown } = DATA.unreadable;
  if (!all) {
    hide("unreadable");
    return;
  }
  const rest = all - shown.length;
  append(
    "unreadable-text", "These aggregates are not in the totals.",
    rest ? ` ${count(rest)} more are not shown.` : "",
  );
  const made = table({
    name: "unreadable-aggregates",
    caption: "Aggregates that could not be read, and why",
    rows: shown,
    columns: [
      { label: "Aggregate", value: (row) => row.key, cell: (row) => key(row.key) },
      { label: "Reason", value: (row) => row.reason, cell: (row) => untrusted(row.reason) },
    ],
  });
  append("unreadable-table", scrolling("Table of unreadable aggregates", made.element), made.more);
}

/* ------------------------------------------------------------------ light and dark */

function startTheme(redraw) {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    redraw();
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
  system.addEventListener("change", () => show(system.matches));
  show(system.matches);
}

function start() {
  showHead();
  showUnreadable();
  if (!DATA.windows.present) {
    for (const id of ["summary", "charts", "matches", "quarantine", "gaps"]) hide(id);
    document.getElementById("empty").hidden = false;
    append("empty-text", DATA.start ? "None of the aggregates of this interval could be read." : "This interval has no aggregates.");
    startTheme(() => {});
    return;
  }
  showNotes();
  showCards();
  showOutcome();
  showCoverage();
  showCharts();
  showMatches();
  showQuarantine();
  showGaps();
  startTheme(drawAll());
  startView([epochOf(DATA.start), epochOf(DATA.end)], DATA.points.minutes * 60);
}

start();
