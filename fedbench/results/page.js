"use strict";
// Everything that came from a run, a model or a data set is put in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};

// Light and dark: as the system says, until the reader says otherwise.
const theme = byId("theme");
const isDark = () => (document.documentElement.dataset.theme ??
  (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const turnTheme = () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; };
theme.hidden = false;
theme.addEventListener("click", turnTheme);

// Sorting: the headings become buttons; a second press turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, n) => {
    const cell = row.cells[n];
    if (cell.classList.contains("missing")) return null;
    const text = (cell.dataset.sort ?? cell.textContent).trim().replaceAll("−", "-").replaceAll(",", "");
    const value = parseFloat(text);
    return text === "" || text.startsWith("—") ? null : Number.isNaN(value) ? text : value;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  heads.forEach((head, n) => {
    const button = make("button", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // Scores: the largest first; ranks and names: the first first.
      const first = head.dataset.column === undefined ? "ascending" : "descending";
      const before = head.getAttribute("aria-sort");
      const down = before === null ? first === "descending" : before === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map(row => [key(row, n), row]);
      rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : (down ? -1 : 1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Filtering: rows by their setting, columns by their domain; nothing ticked means all.
const filters = byId("filters");
let shown = new Set(data.rows.keys());

function applyFilters() {
  const ticked = name => new Set([...filters.querySelectorAll(`input[name="${name}"]:checked`)].map(box => box.value));
  const wanted = {};
  for (const field of filters.querySelectorAll("fieldset")) wanted[field.dataset.filter] = ticked(field.dataset.filter);
  const text = byId("find").value.trim().toLowerCase();
  const fits = row => Object.entries(wanted).every(([name, values]) =>
    name === "domain" || values.size === 0 || row[name] === null || values.has(row[name])) &&
    row.label.toLowerCase().includes(text);
  shown = new Set([...data.rows.keys()].filter(n => fits(data.rows[n])));
  for (const row of document.querySelectorAll("tr[data-row]")) row.hidden = !shown.has(Number(row.dataset.row));
  const domains = wanted.domain ?? new Set();
  for (const cell of document.querySelectorAll("[data-column]")) {
    const domain = data.columns[Number(cell.dataset.column)].domain;
    cell.hidden = domains.size > 0 && domain !== null && !domains.has(domain);
  }
  byId("count").textContent = `${shown.size} of ${data.rows.length} rows`;
  draw();
}

// Pictures, on one column at a time.
const picker = byId("column");
const PALETTE = ["#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#cc3311", "#aa4499", "#999933",
  "#6677dd", "#ddaa33", "#117733", "#aa6655", "#88bb55", "#bb88cc", "#558899", "#cc6677"];
const number = (column, value) => column.percent ? `${(100 * value).toFixed(1).replace("-", "−")}` :
  value.toPrecision(3).replace("-", "−");
const sizeOf = bytes => {
  let amount = bytes;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (amount < 1000) return `${Number(amount.toPrecision(3))} ${unit}`;
    amount /= 1000;
  }
  return `${Number(amount.toPrecision(3))} TB`;
};

function colours() {
  const federated = data.rows.filter(row => row.federated).map(row => row.label);
  const others = data.rows.filter(row => !row.federated).map(row => row.label);
  return {
    domain: [...federated, ...others],
    range: [...federated.map((_, n) => PALETTE[n % PALETTE.length]), ...others.map(() => "#8a8f98")],
  };
}

// The colours that a picture needs, each named.
function legend(points) {
  const all = colours();
  const domain = [...new Set(points.map(point => point.label))];
  return {domain, range: domain.map(label => all.range[all.domain.indexOf(label)]), legend: true, tickFormat: shortened};
}

// A name of many words keeps its ends, where names of one table differ.
function shortened(label) {
  return label.length <= 34 ? label : `${label.slice(0, 17)}…${label.slice(-16)}`;
}

// Names of horizontal lines, those that would touch in one text.
function levelNames(levels, points) {
  const values = points.map(point => point.value);
  const near = (Math.max(...values) - Math.min(...values)) / 16;
  const names = [];
  for (const level of [...levels].sort((a, b) => b.value - a.value)) {
    const last = names.at(-1);
    if (last && last.value - level.value < near) last.label += `, ${level.label}`;
    else names.push({value: level.value, label: level.label});
  }
  return names;
}

function show(figure, options) {
  const place = byId(figure).querySelector(".chart");
  byId(figure).hidden = options === null;
  if (options === null) return;
  const width = Math.max(320, place.clientWidth || 560);
  place.replaceChildren(Plot.plot({width, style: {fontSize: "12px"}, color: colours(), ...options}));
}

function draw() {
  if (typeof Plot === "undefined" || picker.options.length === 0) return;
  const n = Number(picker.value);
  const column = data.columns[n];
  const axis = `${column.name}: ${column.metric}${column.unit ? ` (${column.unit})` : ""}`;
  const format = value => column.percent ? `${Number((100 * value).toFixed(1))}` : `${Number(value.toPrecision(3))}`;
  const points = data.rows.flatMap((row, r) => shown.has(r) && data.cells[r][n] ?
    [{...row, ...data.cells[r][n], r}] : []);
  const left = Math.min(190, 26 + 7 * Math.max(0, ...points.map(point => point.label.length)));
  const order = [...points].sort((a, b) => (column.higher ? -1 : 1) * (a.value - b.value)).map(point => point.label);
  const ranged = points.filter(point => point.low !== null);
  const title = point => `${point.label}: ${number(column, point.value)}` +
    (point.low === null ? "" : ` [${number(column, point.low)}, ${number(column, point.high)}]`) +
    (column.primary && point.rank !== "—" ? `, rank ${point.rank}` : "");

  show("intervals", points.length === 0 ? null : {
    ariaLabel: `Scores with intervals on ${axis}`, marginLeft: left, marginBottom: 40,
    height: 60 + 24 * points.length, x: {label: axis, tickFormat: format, grid: true, nice: true},
    y: {domain: order, label: null, tickFormat: shortened},
    marks: [
      Plot.link(ranged, {x1: "low", x2: "high", y1: "label", y2: "label", stroke: "label", strokeWidth: 3, strokeOpacity: .6}),
      Plot.tickX(points.flatMap(point => point.seeds.map(value => ({label: point.label, value}))),
        {x: "value", y: "label", stroke: "label", strokeOpacity: .7, insetTop: 13, insetBottom: 1}),
      Plot.dot(points, {x: "value", y: "label", fill: "label", r: 5, title, tip: true}),
    ],
  });

  const lines = data.curves.filter(point => point.column === n && shown.has(point.row))
    .map(point => ({...point, label: data.rows[point.row].label}));
  const rounds = [...new Set(lines.map(line => line.round))];
  const levels = points.filter(point => !lines.some(line => line.row === point.r) && !point.federated);
  const banded = lines.filter(point => point.low !== null);
  show("curves", lines.length === 0 ? null : {
    ariaLabel: `Scores over rounds on ${axis}`, marginTop: 28, marginLeft: 44, marginRight: 12, marginBottom: 40, height: 320,
    x: {label: "federated round", tickFormat: "d", ticks: rounds.length <= 10 ? rounds : 8}, y: {label: null, tickFormat: format, grid: true},
    color: legend(lines),
    marks: [
      Plot.ruleY(levels, {y: "value", stroke: "#8a8f98", strokeDasharray: "5 3"}),
      Plot.text(levelNames(levels, [...levels, ...lines]), {x: Math.min(...lines.map(line => line.round)), y: "value", text: "label", dy: -6, textAnchor: "start", fill: "currentColor", fillOpacity: .75}),
      Plot.areaY(banded, {x: "round", y1: "low", y2: "high", z: "label", fill: "label", fillOpacity: .1}),
      Plot.lineY(lines, {x: "round", y: "value", z: "label", stroke: "label", strokeWidth: 2}),
      Plot.dot(lines, {x: "round", y: "value", fill: "label", r: 3, tip: true,
        title: point => `${point.label}, round ${point.round}: ${number(column, point.value)}`}),
    ],
  });

  const sent = points.filter(point => point.bytes);
  const silent = points.filter(point => !point.bytes);
  show("bytes", sent.length === 0 ? null : {
    ariaLabel: `Scores against bytes communicated on ${axis}`, marginTop: 28, marginLeft: 44, marginRight: 12, marginBottom: 40, height: 320,
    color: legend(sent),
    x: {label: "bytes communicated (log)", type: "log", nice: true, ticks: 4, tickFormat: sizeOf},
    y: {label: null, tickFormat: format, grid: true},
    marks: [
      Plot.ruleY(silent, {y: "value", stroke: "#8a8f98", strokeDasharray: "5 3"}),
      Plot.text(levelNames(silent, points), {frameAnchor: "left", y: "value", text: "label", dx: 4, dy: -6, textAnchor: "start", fill: "currentColor", fillOpacity: .75}),
      Plot.ruleX(sent.filter(point => point.low !== null), {x: "bytes", y1: "low", y2: "high", stroke: "label", strokeOpacity: .5}),
      Plot.dot(sent, {x: "bytes", y: "value", fill: "label", r: 5, tip: true, title: point => `${title(point)}\n${sizeOf(point.bytes)}`}),
    ],
  });

  const clients = data.clients.filter(point => point.column === n && shown.has(point.row))
    .map(point => ({...point, label: data.rows[point.row].label}));
  const names = [...new Set(clients.map(point => point.label))];
  show("clients", clients.length === 0 ? null : {
    ariaLabel: `Scores of single clients on ${axis}`, marginLeft: Math.min(190, 26 + 7 * Math.max(...names.map(name => name.length))),
    marginBottom: 40, height: 80 + 46 * names.length, x: {label: axis, tickFormat: format, grid: true, nice: true}, y: {domain: names, label: null, tickFormat: shortened},
    marks: [
      Plot.dot(clients, {x: "value", y: "label", stroke: "#0077bb", r: point => 3 + Math.sqrt(point.examples ?? 0) / 12, strokeOpacity: .8, tip: true,
        title: point => `client ${point.client}${point.seed === null ? "" : `, seed ${point.seed}`}: ${number(column, point.value)}` +
          (point.examples === null ? "" : `\ntrained on ${point.examples.toLocaleString("en")} samples`)}),
      Plot.tickX(points.filter(point => names.includes(point.label)), {x: "value", y: "label", stroke: "currentColor", strokeWidth: 2.5, insetTop: 8, insetBottom: 8}),
    ],
  });
}

if (filters) {
  filters.hidden = false;
  filters.addEventListener("input", applyFilters);
  filters.addEventListener("reset", () => setTimeout(applyFilters));
  filters.addEventListener("submit", event => event.preventDefault());
  for (const [n, column] of data.columns.entries()) {
    if (!column.headline) continue;
    const option = make("option", `${column.name} (${column.metric})`);
    option.value = n;
    option.selected = column.primary;
    picker.append(option);
  }
  byId("pictures").hidden = typeof Plot === "undefined";
  picker.addEventListener("change", draw);
  addEventListener("resize", draw);
  applyFilters();
}

// Drill-down: the items behind a score, where the page was made with them.
const drill = byId("drill");
let open = null;

function ranked(entry) {
  const text = byId("drill-find").value.toLowerCase();
  const wanted = byId("drill-verdict").value;
  const model = entry.models[Number(byId("drill-model").value)];
  return entry.items.map((item, n) => ({...item, ...model.answers[n]})).filter(item =>
    (!wanted || item.verdict === wanted) &&
    (!text || [item.id, item.prompt, item.reference, item.answer, item.completion].some(part => (part ?? "").toLowerCase().includes(text))));
}

function listItems() {
  const items = ranked(open);
  byId("drill-count").textContent = `${items.length} of ${open.items.length} shown${open.total > open.items.length ? `, ${open.total} in all` : ""}`;
  byId("items").replaceChildren(...items.map(item => {
    const place = make("article", undefined, "item");
    place.tabIndex = -1;
    const head = make("div");
    head.append(make("span", item.verdict, `verdict ${item.verdict}`), make("span", ` ${item.id}`));
    place.append(head);
    for (const [name, text] of [["prompt", item.prompt], ["reference", item.reference], ["answer", item.completion ?? item.answer], ["read as", item.completion === null ? null : item.answer], ["why", item.error]]) {
      if (text === null || text === undefined) continue;
      place.append(make("span", name, "soft"), make("pre", text));
    }
    return place;
  }));
  byId("items").scrollTop = 0;
}

function openItems(row, column) {
  const {name, task} = data.columns[column];
  const found = data.items[task];
  const models = found.models.filter(model => model.row === row);
  open = {...found, models};
  byId("drill-title").textContent = `${data.rows[row].label} on ${name}`;
  byId("drill-model").replaceChildren(...models.map((model, n) => {
    const option = make("option", model.name);
    option.value = n;
    return option;
  }));
  listItems();
  drill.showModal();
  byId("items").focus();
}

if (drill) {
  for (const cell of document.querySelectorAll("table.scores td[data-column]")) {
    const row = Number(cell.parentElement.dataset.row), column = Number(cell.dataset.column);
    const found = data.items[data.columns[column].task];
    if (!found || !found.models.some(model => model.row === row)) continue;
    const button = make("button", cell.firstChild.textContent.trim(), "open");
    button.type = "button";
    button.addEventListener("click", () => openItems(row, column));
    cell.firstChild.replaceWith(button);
  }
  for (const id of ["drill-model", "drill-verdict", "drill-find"]) byId(id).addEventListener("input", listItems);
  byId("drill-close").addEventListener("click", () => drill.close());
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  if (event.key === "d") turnTheme();
  if (event.key === "/" && filters && !drill?.open) { event.preventDefault(); byId("find").focus(); }
  if ((event.key === "j" || event.key === "k") && drill?.open) {
    const items = [...byId("items").children];
    const next = items.indexOf(document.activeElement) + (event.key === "j" ? 1 : -1);
    items[Math.max(0, Math.min(items.length - 1, next))]?.focus();
  }
});
