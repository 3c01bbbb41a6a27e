"use strict";
/* Charts over time: a title, a description in words, the drawing, and a table of its data. */

const HEIGHT = 220;
const LEAST_BAR = 3; // pixels: a window in a year is still seen
const AXES = 78; // pixels left and right of the drawing
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
function chart({ name, title, description, series, points, bars = "", format }) {
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
    when.textContent = here ? pointName(points, index) : "whole interval";
    series.forEach((each, place) => {
      values[place].textContent = here ? each.format(each.values[index]) : each.overall;
    });
  }

  charts.push({ area, options: { series, points, bars, format, read }, data });
  return figure;
}

/* A window is named by its end, as its aggregate is; a point of several windows is a period. */
function pointName({ start, minutes: length }, index) {
  const end = start[index] + length * 60;
  return length === DATA.window_minutes ? `window ${moment(end)}` : period(start[index], end);
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
  const { series, points, bars, format, read } = options;
  const shape = bars
    ? { paths: uPlot.paths.bars({ size: [1, Infinity, LEAST_BAR], align: 1, gap: data[0].length > 120 ? 0 : 1 }) }
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
        drag: { x: true, y: false, setScale: false },
        bind: { mousedown: panWithShift, dblclick: () => () => setView(null) },
        // Only one chart is dragged.
        sync: { key: "report", setSeries: false, filters: { pub: (type) => type.startsWith("mouse") && !/down|up/.test(type) } },
        points: { show: !bars },
        ...(bars && { dataIdx: (_, __, ___, value) => under(data[0], Math.min(value, shownRange()[1] - 1)) }),
      },
      scales: {
        x: { range: () => drawnRange(area, points) },
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
      hooks: { setCursor: [read], setSelect: [zoomToSelection], drawClear: [(u) => drawGaps(u, points)] },
    },
    data,
    area,
  );
  new ResizeObserver(() => plot.setSize({ width: area.clientWidth, height: HEIGHT })).observe(area);
  return plot;
}

/* The shown range, and room for the last bar if a window is narrower than the least bar. */
function drawnRange(area, points) {
  const [from, to] = shownRange();
  const leastBar = (LEAST_BAR * (to - from)) / Math.max(1, area.clientWidth - AXES);
  return [from, to + Math.max(0, leastBar - points.minutes * 60)];
}

function zoomToSelection(plot) {
  const { left, width } = plot.select;
  if (width < 3) return; // a click
  const range = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  setView(range);
}

/* Dragging with the shift key moves the range. */
function panWithShift(plot, _, begin) {
  return (event) => {
    if (!event.shiftKey) return begin(event);
    const end = (last) => pan((event.clientX - last.clientX) / plot.over.clientWidth);
    document.addEventListener("mouseup", end, { once: true });
    return null;
  };
}

/* Shade the time without aggregates, so that it does not look like zeros. */
function drawGaps(plot, points) {
  const step = points.minutes * 60;
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = color("gap");
  points.start.forEach((start, index) => {
    const end = points.start[index - 1] + step;
    if (!index || end >= start) return;
    const [from, to] = [end, start].map((time) => Math.max(bbox.left, Math.min(bbox.left + bbox.width, plot.valToPos(time, "x", true))));
    if (to > from) ctx.fillRect(from, bbox.top, to - from, bbox.height);
  });
  ctx.restore();
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
    const step = points.minutes * 60;
    const merged = points.minutes !== DATA.window_minutes;
    const columns = [
      {
        label: merged ? "Period (UTC)" : "Window (UTC)",
        value: (index) => points.start[index],
        cell: (index) => merged ? pointName(points, index) : moment(points.start[index] + step),
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
      span: (index) => [points.start[index], points.start[index] + step],
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
  VIEW.changed.push(() => {
    plots.forEach((plot, place) => {
      const [min, max] = drawnRange(charts[place].area, charts[place].options.points);
      plot.setScale("x", { min, max });
    });
  });
  return () => plots.forEach((plot) => plot.redraw());
}
