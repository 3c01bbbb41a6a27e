"use strict";
/* Charts over time: a title, a description in words, the drawing, and a table of its data. */

const HEIGHT = 220;
const charts = [];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/*
 * Make the figure of a chart.
 *
 * series: {color, label, values, format, dash, overall}. bars: "stacked" draws the first series on
 * top of the second. points: {start: [epoch], minutes}.
 */
function chart({ name, title, description, series, points, interval, bars = "", format }) {
  const legend = make("ul", { class: "legend" });
  const when = make("span", { class: "when" }, "whole interval");
  const values = series.map((each) => {
    const value = make("span", { class: "value" }, each.overall);
    const swatch = make("span", { class: `swatch ${each.color}`, "aria-hidden": "true" });
    legend.append(make("li", {}, swatch, `${each.label} `, value));
    return value;
  });
  const area = make("div", { class: "plot", role: "img", "aria-label": `${title}. ${description}` });
  const figure = make(
    "figure", { id: name, "aria-labelledby": `${name}-title` },
    make("h3", { id: `${name}-title` }, title),
    make("p", { class: "description" }, description),
    make("div", { class: "reading" }, legend, when),
    area,
    dataTable({ name, title, series, points }),
  );

  const drawn = withBreaks(points, series.map((each) => each.values.map(plain)));
  const data = bars === "stacked" ? stacked(drawn.data) : drawn.data;

  function read(plot) {
    const at = plot.cursor.idxs[1];
    const index = at == null ? null : drawn.origin[at];
    const here = index != null;
    when.textContent = here
      ? period(points.start[index], points.start[index] + points.minutes * 60)
      : "whole interval";
    series.forEach((each, place) => {
      values[place].textContent = here ? each.format(each.values[index]) : each.overall;
    });
  }

  charts.push({ area, options: { series, interval, points, bars, format, read }, data });
  return figure;
}

function plain(value) {
  return value === null ? null : Number(value);
}

/* Insert a break for missing windows, so that no line is drawn across it. */
function withBreaks(points, columns) {
  const data = [[], ...columns.map(() => [])];
  const origin = [];
  const step = points.minutes * 60;
  points.start.forEach((start, index) => {
    const before = points.start[index - 1];
    if (index && before + step < start) {
      data[0].push(before + step);
      columns.forEach((_, place) => data[place + 1].push(null));
      origin.push(null);
    }
    data[0].push(start);
    columns.forEach((column, place) => data[place + 1].push(column[index]));
    origin.push(index);
  });
  return { data, origin };
}

function stacked([times, top, bottom]) {
  return [times, top.map((value, place) => (value === null ? null : value + bottom[place])), bottom];
}

function draw({ area, options, data }) {
  const { series, interval, points, bars, format, read } = options;
  const [start, end] = interval;
  const shape = bars
    ? { paths: uPlot.paths.bars({ size: [1, Infinity, 1], align: 1, gap: data[0].length > 120 ? 0 : 1 }) }
    : { paths: uPlot.paths.linear() };
  const axis = {
    stroke: () => color("muted"),
    font: "12px Inter, system-ui, sans-serif",
    grid: { stroke: () => color("grid"), width: 1 },
    ticks: { show: false },
  };
  const plot = new uPlot(
    {
      width: area.clientWidth,
      height: HEIGHT,
      tzDate: (epoch) => uPlot.tzDate(new Date(epoch * 1000), "Etc/UTC"),
      legend: { show: false },
      padding: [8, 20, 0, 0],
      cursor: {
        y: false,
        drag: { x: false, y: false },
        sync: { key: "report", setSeries: false },
        points: { show: !bars },
        ...(bars && { dataIdx: (_, __, ___, value) => under(data[0], value) }),
      },
      scales: {
        x: { range: () => [start, end] },
        y: { range: (_, __, greatest) => [0, greatest > 0 ? greatest * 1.08 : 1] },
      },
      series: [
        {},
        ...series.map((each) => ({
          ...shape,
          stroke: () => color(each.color),
          fill: bars ? () => color(each.color) : undefined,
          width: bars ? 0 : 2,
          dash: each.dash,
          points: bars ? { show: false } : { size: 5, fill: () => color(each.color) },
        })),
      ],
      axes: [
        { ...axis, space: 70, size: 42, values: (_, splits, __, ___, step) => times(splits, step) },
        { ...axis, size: 58, values: (_, splits) => splits.map(format) },
      ],
      hooks: { setCursor: [read] },
    },
    data,
    area,
  );
  new ResizeObserver(() => plot.setSize({ width: area.clientWidth, height: HEIGHT })).observe(area);
  return plot;
}

/* The point whose bar is under the cursor: the last that starts before it. */
function under(starts, value) {
  let index = 0;
  while (index + 1 < starts.length && starts[index + 1] <= value) index += 1;
  return index;
}

function times(splits, step) {
  let before = "";
  return splits.map((epoch) => {
    const date = day(epoch).replace(/ \d+$/, "");
    const first = date !== before;
    before = date;
    if (step >= 86400) return date;
    return first ? `${clock(epoch)}\n${date}` : clock(epoch);
  });
}

/* The data of a chart as a table, made when it is first opened. */
function dataTable({ name, title, series, points }) {
  const details = make("details", {}, make("summary", {}, `${title}, as a table`));
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const columns = [
      {
        label: "Start (UTC)",
        value: (index) => points.start[index],
        cell: (index) => moment(points.start[index]),
      },
      ...series.map((each) => ({
        label: each.label,
        numeric: true,
        value: (index) => plain(each.values[index]) ?? -1,
        cell: (index) => each.exact(each.values[index]),
      })),
    ];
    const made = table({
      caption: `${title}, by ${minutes(points.minutes)}`,
      columns,
      rows: points.start.map((_, index) => index),
      name: `${name}-numbers`,
      whole: true,
    });
    made.element.classList.add("narrow");
    details.append(scrolling(`${title}, as a table`, made.element, true));
  });
  return details;
}

/* Draw the charts, once they are in the page and have a width. */
function drawAll() {
  const plots = charts.map(draw);
  return () => plots.forEach((plot) => plot.redraw());
}
