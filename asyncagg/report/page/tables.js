"use strict";
/* Tables that can be sorted and searched. */

const COLLATOR = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
  if (typeof a === "string" && typeof b === "string") return COLLATOR.compare(a, b);
  return a === b ? 0 : a < b ? -1 : 1;
}

/* How many rows of a long table are shown before "Show all" is clicked. */
const FIRST_ROWS = 25;

/*
 * Make a table.
 *
 * columns: {label, cell(row) → node or text, value(row) → sort key, numeric}; a column without a
 * value cannot be sorted. span(row) → [start, end]: the row is only shown if that is in view. Returns
 * the elements, and a function that shows only the rows that match a condition, and returns their
 * number. Roles are explicit, because a narrow page lays out the rows
 * as cards, which removes the native roles.
 */
function table({ caption, columns, rows, name, span, whole = false }) {
  const heads = columns.map(head);
  const body = make("tbody", { role: "rowgroup" });
  const lines = rows.map((row) => [row, line(columns, row)]);
  const more = make("button", { type: "button", class: "more-rows" });
  let limit = whole ? Infinity : FIRST_ROWS;
  let matches = () => true;
  const isWanted = (row) => matches(row) && (!span || inView(...span(row)));

  function head(column) {
    const cell = make("th", { scope: "col", role: "columnheader" });
    if (column.numeric) cell.classList.add("numeric");
    if (!column.value) {
      cell.append(column.label);
      return cell;
    }
    const button = make("button", { type: "button", class: "sort" }, column.label);
    button.append(make("span", { class: "arrow", "aria-hidden": "true" }));
    button.addEventListener("click", () => sort(cell, column));
    cell.append(button);
    return cell;
  }

  /* The first click sorts numbers from the greatest, and text from A. */
  function sort(cell, column) {
    const [first, second] = column.numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const order = cell.getAttribute("aria-sort") === first ? second : first;
    for (const other of heads) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    lines.sort(([a], [b]) => sign * compare(column.value(a), column.value(b)));
    show();
  }

  function show() {
    let found = 0;
    for (const [row, element] of lines) {
      const wanted = isWanted(row);
      element.hidden = !wanted || found >= limit;
      found += wanted;
    }
    body.append(...lines.map(([, element]) => element));
    more.hidden = found <= limit;
    more.textContent = `Show all ${count(found)}`;
    return found;
  }

  more.addEventListener("click", () => {
    const next = lines.filter(([row]) => isWanted(row))[limit][1];
    limit = Infinity;
    show();
    next.tabIndex = -1; // the button is gone: move the focus to the first new row
    next.focus();
  });
  show();
  if (span) VIEW.changed.push(show);

  const element = make(
    "table", { role: "table", id: name },
    make("caption", {}, caption),
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads)),
    body,
  );
  const filter = (condition) => {
    matches = condition;
    return show();
  };
  return { element, more, filter };
}

function line(columns, row) {
  const cells = columns.map((column) => {
    const cell = make("td", { role: "cell", "data-label": column.label }, column.cell(row));
    if (column.numeric) cell.classList.add("numeric");
    return cell;
  });
  return make("tr", { role: "row" }, ...cells);
}

/* A field that shows only the rows that contain each of its words, and their number. */
function search({ label, noun, plural, rows, filter, textOf, name }) {
  const texts = new Map(rows.map((row) => [row, textOf(row).toLowerCase()]));
  const field = make("input", {
    type: "search", id: name, autocomplete: "off", spellcheck: "false",
  });
  const status = make("p", { class: "found", role: "status" }, counted(rows.length, noun, plural));
  const update = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = filter((row) => words.every((word) => texts.get(row).includes(word)));
    status.textContent = words.length || VIEW.range
      ? `${count(shown)} of ${counted(rows.length, noun, plural)}`
      : counted(rows.length, noun, plural);
  };
  field.addEventListener("input", update);
  VIEW.changed.push(update);
  return make("div", { class: "search" }, make("label", { for: name }, label), field, status);
}

/* A region that scrolls if its content is too wide or tall, by keyboard too. */
function scrolling(label, element, tall = false) {
  return make(
    "div",
    { class: tall ? "scroll tall" : "scroll", role: "region", "aria-label": label, tabindex: "0" },
    element,
  );
}
