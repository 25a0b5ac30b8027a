// Puts the page together, and again after every change of what may be shown.

const header = document.getElementById("header");
const main = document.getElementById("main");
const speaker = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
const slideDialog = h("dialog", { class: "slide-dialog", "aria-labelledby": "slide-heading" });
let openedSlide = null;
let pendingPlots = [];

function say(words) {
  speaker.textContent = words;
}

function drawWhenSized(element, draw) {
  pendingPlots.push({ element, draw, width: 0 });
}

function drawPlots() {
  for (const plot of pendingPlots) {
    const width = plot.element.clientWidth;
    if (width && width !== plot.width) {
      plot.width = width;
      plot.draw();
    }
  }
}

function applyLook() {
  const dark = state.theme === "dark" || (state.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.dataset.palette = state.palette;
}

// After a change of scores, reader or mode: everything is drawn anew, so that nothing hidden is left behind.
function changed({ keepFocus } = {}) {
  remember();
  draw();
  if (slideDialog.open && openedSlide) showSlide(openedSlide);
  if (keepFocus) document.getElementById(keepFocus)?.focus();
}

function draw() {
  applyLook();
  pendingPlots = [];
  header.replaceChildren(...headerParts().filter(Boolean));
  const parts = DATA.view === "cohort" ? [blindBanner(), SLIDES.length ? overviewSection() : null, agreementSection(), predictionSection(), tableSection()] : [blindBanner(), singleSlide()];
  main.replaceChildren(...parts.filter(Boolean), footer());
  drawPlots();
}

function headerParts() {
  const scored = SLIDES.filter((slide) => isNumber(slide.index)).length;
  const look = SLIDES.filter(needsALook).length;
  const words = DATA.view === "cohort" ? `${count(SLIDES.length)} slides, ${count(scored)} with an index, ${count(look)} to be looked at` : null;
  return [
    h("div", { class: "title" }, DATA.view === "cohort" ? h("h1", {}, DATA.title) : h("p", {}, h("a", { href: `../report.html${handedOver(SLIDES[0])}` }, "← All slides")), words && h("p", { class: "quiet" }, words)),
    h("div", { class: "controls" },
      state.blind ? null : button("Blind mode …", askReader),
      choice("palette", "Nuclei", [["red-green", "red and green"], ["safe", "colour-blind safe"]]),
      choice("theme", "Theme", [["auto", "as the system"], ["light", "light"], ["dark", "dark"]])),
  ];
}

function choice(key, label, options) {
  const select = h("select", { id: key, onchange: () => { state[key] = select.value; remember(); applyLook(); } }, options.map(([value, words]) => h("option", { value }, words)));
  select.value = state[key];
  return h("span", { class: "row" }, h("label", { for: key }, label), select);
}

function overviewSection() {
  const frame = h("div", { class: "frame" });
  const drawPlot = () => {
    frame.replaceChildren();
    frame.append(distributionPlot(frame, frame.clientWidth));
  };
  drawWhenSized(frame, drawPlot);
  return h("div", { class: "overview-cards" },
    h("section", { class: "card", "aria-labelledby": "distribution-heading" },
      h("div", { class: "card-head" }, h("h2", { id: "distribution-heading" }, "Index of every slide"), h("p", { class: "quiet" }, "with 95 % intervals; hollow: to be looked at")), frame),
    categoriesSection());
}

function categoriesSection() {
  const names = [...DATA.categories, "indeterminate", "no index", "hidden"];
  const counts = new Map(names.map((name) => [name, 0]));
  for (const slide of SLIDES) counts.set(categoryOf(slide), (counts.get(categoryOf(slide)) ?? 0) + 1);
  const most = Math.max(...counts.values());
  const bars = [...counts].filter(([name, number]) => number || DATA.categories.includes(name)).map(([name, number]) => {
    const pick = () => {
      filters.category = filters.category === name ? null : name;
      changed({ keepFocus: `category-of-${name}` });
    };
    return h("li", {}, button([
      h("span", { class: "name" }, name),
      svg("svg", { class: "count-bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: (100 * number) / most, height: 10, class: `full ${categoryClass(name)}` })),
      h("span", { class: "number" }, count(number)),
    ], pick, { id: `category-of-${name}`, "aria-pressed": String(filters.category === name), title: "Show only these slides" }));
  });
  return h("section", { class: "card", "aria-labelledby": "categories-heading" },
    h("div", { class: "card-head" }, h("h2", { id: "categories-heading" }, "Categories"), h("p", { class: "quiet" }, "click to filter")), h("ul", { class: "categories" }, bars));
}

function footer() {
  const versions = Object.entries(DATA.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  return h("footer", {},
    h("p", {}, "Index: positive tumour nuclei over all tumour nuclei. This page holds all it shows, sends nothing and loads nothing."),
    DATA.view === "cohort" ? h("p", {}, "Keys: ", h("kbd", {}, "/"), " filter, ", h("kbd", {}, "↑"), " ", h("kbd", {}, "↓"), " slides, ", h("kbd", {}, "Enter"), " open, ", h("kbd", {}, "←"), " ", h("kbd", {}, "→"), " next slide, ", h("kbd", {}, "M"), " marks, ", h("kbd", {}, "Esc"), " close.") : null,
    versions ? h("p", {}, `Written by ${versions}`) : null);
}

// Slides: in a dialog where the page holds them, on pages of their own above 300.

function pageAddress(slide) {
  return `${DATA.pages_folder}/${encodeURIComponent(DATA.files[slide.number])}${handedOver(null)}`;
}

function openSlide(slide) {
  if (DATA.view !== "cohort") return;
  if (DATA.files) {
    location.href = pageAddress(slide);
    return;
  }
  showSlide(slide);
  if (!slideDialog.open) slideDialog.showModal();
  slideDialog.querySelector(isHidden(slide) ? "#score" : "#slide-heading").focus({ preventScroll: true });
}

function showSlide(slide) {
  const same = openedSlide === slide;
  const top = slideDialog.scrollTop;
  openedSlide = slide;
  const order = visibleOrder();
  const place = order.indexOf(slide);
  const step = (by) => () => openSlide(order[place + by]);
  const patient = slide.patient && slide.patient !== slide.slide ? h("span", { class: "quiet" }, `patient ${slide.patient}`) : null;
  slideDialog.replaceChildren(
    h("div", { class: "slide-head" },
      h("h2", { id: "slide-heading", tabindex: -1 }, slide.slide, " ", patient),
      place >= 0 ? h("span", { class: "quiet" }, `${place + 1} of ${order.length}`) : null,
      h("span", { class: "row" },
        button("← Previous", step(-1), { id: "previous", disabled: place <= 0 }),
        button("Next →", step(1), { id: "next", disabled: place < 0 || place + 1 >= order.length }),
        button("Close", () => slideDialog.close(), { "aria-keyshortcuts": "Escape" }))),
    slideView(slide, detailsOf(slide)),
  );
  slideDialog.scrollTop = same ? top : 0;
}

function singleSlide() {
  const slide = SLIDES[0];
  const patient = slide.patient && slide.patient !== slide.slide ? h("span", { class: "quiet" }, `patient ${slide.patient}`) : null;
  const link = (file, words, id) => (file ? h("a", { id, class: "button", href: `${encodeURIComponent(file)}${handedOver(slide)}` }, words) : null);
  return h("article", { "aria-labelledby": "slide-heading" },
    h("div", { class: "slide-head" },
      h("h1", { id: "slide-heading" }, slide.slide, " ", patient),
      h("span", { class: "quiet" }, `${count(DATA.place[0])} of ${count(DATA.place[1])}`),
      h("span", { class: "row" }, link(DATA.before, "← Previous", "previous"), link(DATA.after, "Next →", "next"))),
    slideView(slide, detailsOf(slide)));
}

function askDialog(heading, ...content) {
  const dialog = h("dialog", { class: "ask", "aria-labelledby": "ask-heading" }, h("h2", { id: "ask-heading" }, heading), content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

slideDialog.addEventListener("close", () => {
  const row = openedSlide && rows.get(openedSlide);
  openedSlide = null;
  slideDialog.replaceChildren();
  if (row?.isConnected) row.querySelector(".open").focus();
});

slideDialog.addEventListener("click", (event) => {
  if (event.target === slideDialog) slideDialog.close(); // beside it
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog.ask")) return;
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing) return;
  if (event.key === "/" && !slideDialog.open) document.getElementById("search")?.focus();
  else if (event.key === "m" || event.key === "M") document.getElementById("marks")?.click();
  else if (event.key === "ArrowLeft" && !event.target.closest(".scroll")) document.getElementById("previous")?.click();
  else if (event.key === "ArrowRight" && !event.target.closest(".scroll")) document.getElementById("next")?.click();
  else return;
  event.preventDefault();
});

addEventListener("beforeunload", (event) => {
  if (!memory.works && state.blind && state.scores.size) event.preventDefault();
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyLook);
addEventListener("resize", debounced(drawPlots, 120));

recall();
takeOver();
draw();
document.body.append(slideDialog, speaker);
