// The table of the cohort: sorted by any column, filtered by text, flags and category.

const filters = { text: "", flags: new Set(), category: null, look: false };
const sorting = { key: null, descending: false };
const ROWS_AT_ONCE = 300; // more follow when the table is scrolled to its end
let tableColumns = [];
let rows = new Map();
let sortedSlides = [];
let listed = []; // slides that pass the filters, in the order of the table
let tableBody = null;
let shownCount = null;

function columns() {
  const found = [
    { key: "slide", label: "Slide", text: true, value: (slide) => slide.slide, cell: slideCell },
    { key: "patient", label: "Patient", text: true, value: (slide) => slide.patient },
    { key: "index", label: "Index", value: (slide) => shown(slide, "index"), cell: indexCell },
    { key: "width", label: "95 % interval", text: true, value: intervalWidth, cell: intervalCell, title: "sorts by its width" },
    { key: "category", label: "Category", text: true, value: categoryRank, cell: categoryCell },
    { key: "total", label: "Nuclei", value: (slide) => shown(slide, "total"), words: count },
    { key: "tumor_mm2", label: "Tumour, mm²", value: (slide) => slide.tumor_mm2, words: (value) => decimals(value, 1) },
  ];
  if (SLIDES.some((slide) => isNumber(slide.index_hot_spot))) {
    found.push({ key: "index_hot_spot", label: "Hot spot", value: (slide) => shown(slide, "index_hot_spot"), words: (value) => percent(value) });
  }
  for (const reader of readers()) found.push({ key: reader.key, label: reader.name, value: reader.value, words: (value) => percent(value) });
  found.push({ key: "flags", label: "Flags", value: (slide) => shownFlags(slide).length, text: true, cell: flagsCell });
  return found;
}

function slideCell(slide) {
  return DATA.files
    ? h("a", { class: "open", href: pageAddress(slide) }, slide.slide)
    : button(slide.slide, () => openSlide(slide), { class: "open", "aria-haspopup": "dialog" });
}

function indexCell(slide) {
  if (isHidden(slide)) return h("span", { class: "quiet" }, "hidden");
  return isNumber(slide.index) ? h("strong", {}, percent(slide.index)) : h("span", { class: "quiet" }, "none");
}

function intervalWidth(slide) {
  return isNumber(shown(slide, "index")) && isNumber(slide.index_low) ? slide.index_high - slide.index_low : null;
}

function intervalCell(slide) {
  if (intervalWidth(slide) === null) return null;
  const words = `${(100 * slide.index_low).toFixed(1)}–${(100 * slide.index_high).toFixed(1)}`;
  return h("span", { class: "interval-cell" }, intervalGlyph(slide, 120, 14, glyphScale), h("span", {}, words));
}

function categoryRank(slide) {
  const category = categoryOf(slide);
  const place = [...DATA.categories, "indeterminate"].indexOf(category);
  return place < 0 ? null : place;
}

function categoryCell(slide) {
  return h("span", { class: `category ${categoryClass(categoryOf(slide))}` }, categoryOf(slide));
}

// What asks for a look comes first, as the cell shows one line.
function flagsCell(slide) {
  const flags = shownFlags(slide).map((flag) => DATA.flags[flag]).sort((a, b) => a.information - b.information);
  const title = flags.map(({ words }) => words).join(", ");
  return h("div", { class: "flags", title }, flags.map(({ words, information }) => h("span", { class: information ? "flag information" : "flag" }, words)));
}

const glyphScale = Math.min(1, Math.max(0.4, Math.ceil(10 * Math.max(0, ...SLIDES.map((slide) => (isNumber(slide.index) ? slide.index_high ?? slide.index : 0)))) / 10));

function tableSection() {
  shownCount = h("p", { class: "quiet", role: "status" });
  const search = h("input", { type: "search", id: "search", placeholder: "slide, patient, flag …", value: filters.text, autocomplete: "off", "aria-keyshortcuts": "/" });
  search.addEventListener("input", debounced(() => { filters.text = search.value; applyFilters(); }, 60));
  tableColumns = columns();
  tableBody = h("tbody", {});
  rows = new Map();
  const head = h("tr", {});
  const sort = () => {
    head.replaceChildren(...tableColumns.map((column) => headerCell(column, sort)));
    applySort();
    applyFilters();
  };
  const table = h("table", { id: "slides", class: "slides" }, h("caption", { class: "unseen" }, "Slides of the cohort"), h("thead", {}, head), tableBody);
  tableBody.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a, button") && !String(getSelection())) openSlide(SLIDES[Number(row.dataset.number)]);
  });
  tableBody.addEventListener("keydown", walkRows);
  const whole = h("section", { class: "card", "aria-labelledby": "slides-heading" },
    h("div", { class: "card-head" }, h("h2", { id: "slides-heading" }, "Slides"), shownCount,
      h("p", { class: "row search" }, h("label", { for: "search" }, "Filter"), search)),
    flagFilter(),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of slides", onscroll: (event) => {
      const box = event.target;
      if (box.scrollTop + 2 * box.clientHeight > box.scrollHeight) listMore();
    } }, table),
  );
  sort();
  return whole;
}

function headerCell(column, sort) {
  const sorted = sorting.key === column.key;
  const direction = sorted ? (sorting.descending ? "descending" : "ascending") : "none";
  const choose = () => {
    sorting.descending = sorted ? !sorting.descending : !column.text;
    sorting.key = column.key;
    sort();
    document.getElementById(`sort-${column.key}`).focus();
  };
  return h("th", { scope: "col", "aria-sort": direction, class: column.text ? null : "number" },
    button([column.label, h("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (sorting.descending ? "▼" : "▲") : "")], choose, { id: `sort-${column.key}`, title: column.title }));
}

function tableRow(slide) {
  const cells = tableColumns.map((column) => {
    const content = column.cell ? column.cell(slide) : column.words ? column.words(column.value(slide)) : column.value(slide);
    return h(column.key === "slide" ? "th" : "td", { scope: column.key === "slide" ? "row" : null, class: column.text ? null : "number" }, content);
  });
  return h("tr", { "data-number": slide.number, class: needsALook(slide) ? "look" : null }, cells);
}

function applySort() {
  const column = tableColumns.find((one) => one.key === sorting.key);
  const order = SLIDES.map((slide) => ({ slide, value: column ? column.value(slide) : slide.number }));
  const way = sorting.descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined;
  order.sort((a, b) => {
    // What has no value, or may not be shown, stays at the end in the order of the sheet.
    if (missing(a.value) || missing(b.value)) return Number(missing(a.value)) - Number(missing(b.value)) || a.slide.number - b.slide.number;
    const difference = typeof a.value === "string" ? a.value.localeCompare(b.value, "en", { numeric: true }) : a.value - b.value;
    return way * difference || a.slide.number - b.slide.number;
  });
  sortedSlides = order.map(({ slide }) => slide);
}

function flagFilter() {
  const counts = new Map();
  for (const slide of SLIDES) for (const flag of shownFlags(slide)) counts.set(flag, (counts.get(flag) ?? 0) + 1);
  const toggle = (flag) => {
    if (!filters.flags.delete(flag)) filters.flags.add(flag);
    refresh();
  };
  const chip = (words, number, pressed, action, extra) => button([words, h("span", { class: "number" }, count(number))], action, { class: `chip ${extra ?? ""}`, "aria-pressed": String(pressed) });
  const draw = () => {
    const chips = [chip("to be looked at", SLIDES.filter(needsALook).length, filters.look, () => { filters.look = !filters.look; refresh(); })];
    for (const [flag, { words, information }] of Object.entries(DATA.flags)) {
      if (counts.has(flag)) chips.push(chip(words, counts.get(flag), filters.flags.has(flag), () => toggle(flag), information ? "information" : ""));
    }
    if (filters.flags.size || filters.look || filters.category) chips.push(button("Show all", clearFilters, { class: "link" }));
    return chips;
  };
  const box = h("div", { class: "chips", role: "group", "aria-label": "Show only slides with these flags" }, draw());
  const refresh = () => {
    const place = [...box.children].indexOf(document.activeElement);
    box.replaceChildren(...draw());
    box.children[Math.min(place, box.children.length - 1)]?.focus();
    applyFilters();
  };
  return Object.keys(DATA.flags).length || filters.category ? box : null;
}

function clearFilters() {
  filters.flags.clear();
  Object.assign(filters, { look: false, category: null, text: "" });
  changed({ keepFocus: "search" });
}

function passes(slide) {
  const flags = shownFlags(slide);
  if (filters.look && !needsALook(slide)) return false;
  if (filters.category && categoryOf(slide) !== filters.category) return false;
  for (const flag of filters.flags) if (!flags.includes(flag)) return false;
  const text = filters.text.trim().toLowerCase();
  if (!text) return true;
  const words = [slide.slide, slide.patient, ...flags.map((flag) => DATA.flags[flag].words), categoryOf(slide)];
  return words.join("\n").toLowerCase().includes(text);
}

function applyFilters() {
  listed = sortedSlides.filter(passes);
  tableBody.replaceChildren();
  listMore();
  const among = filters.category ? `, ${filters.category} only` : "";
  shownCount.textContent = listed.length === SLIDES.length ? `${count(listed.length)} slides` : `${count(listed.length)} of ${count(SLIDES.length)} slides${among}`;
}

function listMore(number = ROWS_AT_ONCE) {
  const next = listed.slice(tableBody.rows.length, tableBody.rows.length + number);
  for (const slide of next) if (!rows.has(slide)) rows.set(slide, tableRow(slide));
  tableBody.append(...next.map((slide) => rows.get(slide)));
}

addEventListener("beforeprint", () => tableBody && listMore(listed.length));

// Up and down go from slide to slide, without the other cells.
function walkRows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const place = event.target.closest("tr").sectionRowIndex + step;
  if (place >= tableBody.rows.length) listMore();
  const next = tableBody.rows[place];
  if (next) {
    next.querySelector(".open").focus();
    event.preventDefault();
  }
}

function visibleOrder() {
  return listed.length ? listed : SLIDES;
}
