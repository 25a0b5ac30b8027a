// Blind scoring: who reads, what was typed, and the table that the sample sheet takes.

function parseScore(text) {
  const written = text.trim().replace(/\s*%$/, "").replace(",", ".");
  if (!/^(\d+\.?\d*|\.\d+)$/.test(written)) return { error: "Write a number from 0 to 100, such as 15 or 15.5." };
  const value = Number(written);
  if (value > 100) return { error: `${text.trim()} is more than 100 %. Write a number from 0 to 100.` };
  const unsure = value > 0 && value < 1 ? `That is ${value} %, less than one in a hundred. Save again to keep it.` : null;
  return { fraction: Number((value / 100).toFixed(6)), unsure };
}

// As a spreadsheet would run it as a formula, text that begins like one gets an apostrophe in front.
function csvCell(value) {
  // eslint-disable-next-line no-control-regex
  let text = String(value).replace(/[\u0000-\u001f\u007f]+/g, " ").trim();
  if (/^[=+\-@＝＋－＠]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(text)) text = `'${text}`;
  return /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function scoresCsv() {
  const columns = [...state.scores].filter(([, bySlide]) => bySlide.size).map(([column]) => column).sort();
  const ids = DATA.view === "cohort" ? SLIDES.map((slide) => slide.slide) : [...new Set(columns.flatMap((column) => [...state.scores.get(column).keys()]))];
  const rows = ids
    .filter((id) => columns.some((column) => state.scores.get(column).has(id)))
    .map((id) => [id, ...columns.map((column) => state.scores.get(column).get(id) ?? "")]);
  return [["slide", ...columns], ...rows].map((row) => row.map(csvCell).join(",") + "\n").join("");
}

function saveScores() {
  const address = URL.createObjectURL(new Blob([scoresCsv()], { type: "text/csv;charset=utf-8" }));
  const link = h("a", { href: address, download: "scores.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  say("The scores were saved as scores.csv.");
}

function countScores() {
  return SLIDES.filter((slide) => scoreOf(slide) !== null).length;
}

function blindBanner() {
  if (!state.blind) return null;
  const whole = DATA.view === "cohort";
  const left = whole ? SLIDES.find(isHidden) : null;
  return h(
    "section",
    { class: "banner", "aria-label": "Blind mode" },
    h("strong", {}, "Blind mode"),
    h("span", {}, `Reader: ${readerName(state.reader)}`),
    whole && h("span", {}, `${countScores()} of ${SLIDES.length} slides scored`),
    left && button("Next slide to score", () => openSlide(left), { class: "primary" }),
    button("Save scores (CSV)", saveScores, { disabled: ![...state.scores.values()].some((bySlide) => bySlide.size) }),
    button("Change reader", askReader),
    button("Leave blind mode", askToLeave),
    !memory.works && h("span", { class: "warning" }, "This browser forgets scores when the page closes: save them before."),
  );
}

function askReader() {
  const known = [...new Set([...state.scores.keys(), state.reader])].filter((column) => column !== FIRST_READER);
  const name = h("input", {
    type: "text", id: "reader-name", list: "known-readers", autocomplete: "off", maxlength: 40,
    value: state.reader === FIRST_READER ? "" : readerName(state.reader),
  });
  const first = h("input", { type: "radio", name: "reader", value: "first", id: "reader-first", checked: state.reader === FIRST_READER });
  const named = h("input", { type: "radio", name: "reader", value: "named", id: "reader-named", checked: state.reader !== FIRST_READER });
  const problem = h("p", { class: "problem", role: "alert" });
  name.addEventListener("focus", () => { named.checked = true; });
  const start = (event) => {
    event.preventDefault();
    const column = first.checked ? FIRST_READER : `${FIRST_READER}_${name.value.trim()}`;
    if (!isColumn(column)) {
      problem.textContent = "Write a name of letters, digits, dots, dashes and underscores, such as anna.";
      name.focus();
      return;
    }
    Object.assign(state, { blind: true, reader: column });
    changed();
    dialog.close();
    say(`Blind mode is on for ${readerName(column)}.`);
  };
  const dialog = askDialog(
    "Blind mode",
    h(
      "form",
      { onsubmit: start },
      h("p", {}, "Hides the computed index, and all that gives it away, of each slide until you have typed a score of your own. Scores stay in this browser until you save them."),
      h("fieldset", {},
        h("legend", {}, "Who reads?"),
        h("p", {}, first, h("label", { for: "reader-first" }, "First reader, column ", h("code", {}, FIRST_READER))),
        h("p", {}, named, h("label", { for: "reader-named" }, "Another reader, column ", h("code", {}, `${FIRST_READER}_NAME`))),
        h("p", { class: "indent" }, h("label", { for: "reader-name" }, "Name"), name),
        h("datalist", { id: "known-readers" }, known.map((column) => h("option", { value: readerName(column) }))),
      ),
      problem,
      h("p", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Start"), button("Cancel", () => dialog.close())),
    ),
  );
}

function askToLeave() {
  const left = SLIDES.filter(isHidden).length;
  const leave = () => {
    state.blind = false;
    changed();
    dialog.close();
  };
  if (!left && DATA.view === "cohort") {
    state.blind = false;
    changed();
    return;
  }
  const words = DATA.view === "cohort" ? `${left} of ${SLIDES.length} slides are not scored yet` : "Other slides may not be scored yet";
  const dialog = askDialog(
    "Leave blind mode?",
    h("p", {}, `${words} by ${readerName(state.reader)}. Their index will be shown; scores typed after that are not blind.`),
    h("p", { class: "actions" }, button("Show every index", leave, { class: "primary" }), button("Stay blind", () => dialog.close(), { autofocus: true })),
  );
}

// The form that stands where the index will be.
function scoreForm(slide) {
  const input = h("input", { type: "text", id: "score", inputmode: "decimal", autocomplete: "off", size: 8, "aria-describedby": "score-problem" });
  const problem = h("p", { id: "score-problem", class: "problem", role: "alert" });
  let confirmed = null;
  const save = (event) => {
    event.preventDefault();
    const found = parseScore(input.value);
    if (found.error || (found.unsure && confirmed !== input.value)) {
      problem.textContent = found.error ?? found.unsure;
      confirmed = input.value;
      input.focus();
      return;
    }
    setScore(state.reader, slide.slide, found.fraction);
    changed();
    say(`Saved ${percent(found.fraction)} for ${slide.slide}. The computed index is ${percent(slide.index)}.`);
    document.getElementById("result")?.focus();
  };
  return h(
    "form",
    { class: "score", onsubmit: save },
    h("label", { for: "score" }, `Score of ${readerName(state.reader).toLowerCase() === "first reader" ? "the first reader" : readerName(state.reader)}: positive tumour nuclei`),
    h("p", { class: "row" }, input, h("span", { "aria-hidden": "true" }, "%"), h("button", { type: "submit", class: "primary" }, "Save and show the index")),
    problem,
    h("p", { class: "quiet" }, "The index, everything computed from it and the marks on nuclei are hidden until then."),
  );
}

function ownScore(slide) {
  const score = state.blind ? scoreOf(slide) : null;
  if (score === null) return null;
  const remove = () => {
    const dialog = askDialog(
      "Delete this score?",
      h("p", {}, `${percent(score)} of ${readerName(state.reader)} for ${slide.slide}. You have seen the computed index, so another score will not be blind.`),
      h("p", { class: "actions" },
        button("Delete", () => { state.scores.get(state.reader).delete(slide.slide); changed(); dialog.close(); }),
        button("Keep", () => dialog.close(), { class: "primary", autofocus: true })),
    );
  };
  const difference = isNumber(slide.index) ? `, index ${points(slide.index - score)} from it` : "";
  const next = nextToScore(slide);
  return [
    h("p", {}, `${readerName(state.reader)}: `, h("strong", {}, percent(score)), difference, " ", button("Delete score", remove, { class: "link" })),
    next && h("p", {}, button("Next slide to score", () => openSlide(next), { class: "primary" })),
  ];
}

// The first slide below this one that is not scored yet, else the first of all.
function nextToScore(slide) {
  if (DATA.view !== "cohort") return null;
  const order = visibleOrder();
  return order.slice(order.indexOf(slide) + 1).find(isHidden) ?? order.find(isHidden) ?? null;
}
