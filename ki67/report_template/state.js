// What the page was given, and what the reader chose. Choices outlive a reload where the browser lets a page remember.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SLIDES = DATA.slides.map((slide, number) => ({ ...slide, number }));
const BY_ID = new Map(SLIDES.map((slide) => [slide.slide, slide]));
const FIRST_READER = "reference_index";

// Scores: by column of the sample sheet, then by slide, as fractions.
const state = { theme: "auto", palette: "red-green", blind: false, reader: FIRST_READER, scores: new Map() };

const memory = {
  works: true,
  read(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      this.works = false; // a page inside another, or a browser that keeps nothing
      return null;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      this.works = false;
    }
  },
};

const LOOK_KEY = "ki67-report";
const COHORT_KEY = `ki67-report-${DATA.key}`;

function remember() {
  memory.write(LOOK_KEY, { theme: state.theme, palette: state.palette });
  const scores = [...state.scores].map(([column, bySlide]) => [column, [...bySlide]]);
  memory.write(COHORT_KEY, { blind: state.blind, reader: state.reader, scores });
}

function recall() {
  const look = memory.read(LOOK_KEY);
  if (look) Object.assign(state, { theme: look.theme ?? "auto", palette: look.palette ?? "red-green" });
  const cohort = memory.read(COHORT_KEY);
  if (cohort) {
    Object.assign(state, { blind: cohort.blind === true, reader: cohort.reader ?? FIRST_READER });
    state.scores = new Map((cohort.scores ?? []).map(([column, bySlide]) => [column, new Map(bySlide)]));
  }
}

// Pages of a large cohort hand over what matters in the address too, as some browsers remember each file on its own.
function handedOver(slide) {
  const parts = new URLSearchParams();
  if (state.blind) parts.set("blind", state.reader);
  const score = slide && state.scores.get(state.reader)?.get(slide.slide);
  if (state.blind && score !== undefined && score !== null) parts.set("scored", `${score}:${slide.slide}`);
  return parts.size ? `#${parts}` : "";
}

function takeOver() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const reader = parts.get("blind");
  if (reader === null || !isColumn(reader)) return;
  Object.assign(state, { blind: true, reader });
  const [score, ...id] = (parts.get("scored") ?? "").split(":");
  const fraction = Number(score);
  if (id.length && score !== "" && fraction >= 0 && fraction <= 1) setScore(reader, id.join(":"), fraction);
}

function isColumn(text) {
  return /^reference_index(_[A-Za-z0-9_.-]+)?$/.test(text);
}

function setScore(column, id, fraction) {
  if (!state.scores.has(column)) state.scores.set(column, new Map());
  state.scores.get(column).set(id, fraction);
}

function scoreOf(slide, column = state.reader) {
  return state.scores.get(column)?.get(slide.slide) ?? null;
}

// A slide is hidden from a blind reader who has not scored it. Nothing that depends on its index may then be shown.
function isHidden(slide) {
  return state.blind && scoreOf(slide) === null;
}

function shownFlags(slide) {
  return isHidden(slide) ? slide.flags.filter((flag) => !DATA.flags[flag].revealing) : slide.flags;
}

function needsALook(slide) {
  return shownFlags(slide).some((flag) => !DATA.flags[flag].information);
}

function shown(slide, key) {
  return isHidden(slide) ? null : slide[key];
}

function readerName(column) {
  return column === FIRST_READER ? "First reader" : column.slice(FIRST_READER.length + 1);
}

// Readers of the sheet, and those whose scores were typed here.
function readers() {
  const columns = new Set(SLIDES.flatMap((slide) => Object.keys(slide.readers)));
  const ofSheet = [...columns].sort().map((column) => ({
    key: `sheet:${column}`,
    column,
    name: readerName(column),
    value: (slide) => (isHidden(slide) ? null : slide.readers[column] ?? null),
  }));
  const typed = [...state.scores].filter(([, bySlide]) => bySlide.size).map(([column]) => ({
    key: `here:${column}`,
    column,
    name: `${readerName(column)}, scored here`,
    value: (slide) => (isHidden(slide) ? null : scoreOf(slide, column)),
  }));
  return [...ofSheet, ...typed];
}

function categoryOf(slide) {
  if (isHidden(slide)) return "hidden";
  return isNumber(slide.index) ? slide.category ?? "indeterminate" : "no index";
}

function categoryClass(category) {
  const place = DATA.categories.indexOf(category);
  if (place < 0) return `category-${category.replaceAll(" ", "-")}`;
  // Four shades from low to high, whatever the number of categories.
  return `category-${Math.round((3 * place) / Math.max(1, DATA.categories.length - 1))}`;
}
