// What was predicted from H&E alone: how good it is on slides that were measured, and what it says of those that were not.
// A prediction is no measurement, so it stands in a section of its own and nowhere else. A blind reader sees none of it.

const PREDICTION_WORDS = {
  spearman: "Spearman's ρ",
  pearson: "Pearson's r",
  spearman_pooled: "Spearman's ρ over all folds (biased downwards)",
  mae: "Mean absolute error",
  rmse: "Root mean square error",
  bias: "Bias",
  mae_of_mean: "Mean absolute error of the mean index",
  kappa_linear: "Kappa of categories, linear weights",
  same_category: "Slides in the same category",
  interval_coverage: "Slides whose index is in the interval",
  spearman_between_slides: "Spearman's ρ between slide means",
  spearman_within_slides: "Spearman's ρ within slides",
  pearson_within_slides: "Pearson's r within slides",
};
const PREDICTION_PICTURES = {
  patches: "Predicted against counted share of positive nuclei of every labelled patch, out of fold",
  correlations: "Correlations of slides and patches with what was measured, with 95 % intervals; the table has the same values",
};
const PREDICTION_POINTS = new Set(["mae", "rmse", "bias", "mae_of_mean"]);
const PREDICTION_PERCENT = new Set(["same_category", "interval_coverage"]);

function predictionSection() {
  const found = DATA.prediction;
  if (!found || state.blind) return null;
  const frame = h("div", { class: "frame" });
  const section = h("section", { class: "card", id: "prediction", "aria-labelledby": "prediction-heading" },
    h("div", { class: "card-head" }, h("h2", { id: "prediction-heading" }, "Predicted from H&E alone"), h("p", { class: "quiet" }, `${found.method.replaceAll("_", " ")}, not a measurement`)),
    h("p", {}, `A model that learned from ${count(found.model.slides)} slides of ${count(found.model.patients)} patients with both stains. The plot and the scores are of slides that it had not seen.`),
    h("div", { class: "agreement" },
      h("figure", {}, h("figcaption", {}, "Predicted against measured index"), frame),
      h("div", { class: "measures" }, predictionTable(found.scores.filter((one) => one.level === "slide"), "Slides, with 95 % intervals"), found.notes.map((note) => h("p", { class: "quiet" }, note)), predictionTable(found.scores.filter((one) => one.level === "patch"), "Patches"))),
    h("details", { class: "prediction-pictures" }, h("summary", {}, "Pictures of patches and correlations"),
      Object.entries(found.pictures).map(([name, picture]) => pictureFrame(picture, PREDICTION_PICTURES[name]))),
    predictedSlides(found.predicted));
  drawWhenSized(section, () => {
    const room = section.clientWidth - 34;
    frame.replaceChildren();
    frame.append(predictionPlot(frame, Math.max(260, Math.min(400, room >= 700 ? Math.floor((room - 320) / 2) : room)), found.slides));
  });
  return section;
}

function predictionTable(scores, caption) {
  if (!scores.length) return null;
  const words = (name, value) => {
    if (!isNumber(value)) return "–";
    if (PREDICTION_PERCENT.has(name)) return percent(value, 0);
    if (PREDICTION_POINTS.has(name)) return name === "bias" ? points(value) : points(value).replace("+", "");
    return value.toFixed(2);
  };
  const bare = (name, value) => words(name, value).replace(" points", "").replace(" %", "");
  return h("table", { class: "pairs" }, h("caption", {}, caption),
    h("tbody", {}, scores.map(({ name, value, low, high }) => h("tr", {},
      h("th", { scope: "row" }, PREDICTION_WORDS[name] ?? name.replaceAll("_", " ")),
      h("td", {}, words(name, value)),
      h("td", { class: "quiet" }, isNumber(low) && isNumber(high) ? `${bare(name, low)} to ${bare(name, high)}` : "")))));
}

// The slides without a Ki-67 slide, each with its predicted index or the reason why it has none.
function predictedSlides(predicted) {
  if (!predicted.length) return h("p", { class: "quiet" }, `Every slide of the sheet has a ${DATA.marker} slide, so nothing was predicted.`);
  return h("table", { class: "pairs", id: "predicted" }, h("caption", {}, `Slides without a ${DATA.marker} slide`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Slide"), h("th", { scope: "col" }, "Predicted index"), h("th", { scope: "col" }, "95 % interval"))),
    h("tbody", {}, predicted.map((one) => h("tr", {},
      h("th", { scope: "row" }, one.slide),
      isNumber(one.predicted_index)
        ? [h("td", {}, percent(one.predicted_index)), h("td", { class: "quiet" }, IN_WORDS.range(one.predicted_low, one.predicted_high))]
        : h("td", { colspan: 2 }, one.reason)))));
}

// Predicted against measured index, with intervals and the line on which both are equal.
function predictionPlot(frame, size, slides) {
  const told = slides.filter((one) => isNumber(one.predicted) && BY_ID.has(one.slide));
  const { root, inner } = plotArea(size, size, { left: 40, right: 12, top: 30, bottom: 42 }, `Predicted against measured index of ${told.length} slides that the model had not seen`);
  const highest = Math.max(...told.flatMap((one) => [one.index, one.predicted, Math.min(one.predicted_high, 1)]), 0.28);
  const most = Math.min(100, 5 * Math.ceil((103 * highest) / 5));
  const x = linear(0, most, inner.left, inner.right);
  const y = linear(0, most, inner.bottom, inner.top);
  axisLeft(root, inner, y, ticks(0, most, 6), `predicted ${DATA.marker} index, %`);
  axisBottom(root, inner, x, ticks(0, most, 6), `measured ${DATA.marker} index, %`);
  root.append(svg("line", { x1: x(0), x2: x(most), y1: y(0), y2: y(most), class: "identity" }));
  const at = (one) => ({ x: x(100 * one.index), y: y(100 * one.predicted) });
  root.append(svg("path", { class: "interval", d: told.map((one) => `M${at(one).x.toFixed(1)} ${y(100 * one.predicted_low).toFixed(1)}V${y(100 * one.predicted_high).toFixed(1)}`).join("") }));
  const places = told.map((one) => ({ ...at(one), slide: BY_ID.get(one.slide) }));
  for (const place of places) root.append(svg("circle", { cx: place.x.toFixed(1), cy: place.y.toFixed(1), r: told.length > 100 ? 2.6 : 3.6, class: "dot" }));
  const words = new Map(told.map((one) => [one.slide, `${one.slide}: predicted ${percent(one.predicted)} (${percent(one.predicted_low)} to ${percent(one.predicted_high)}), measured ${percent(one.index)}`]));
  followPointer(frame, root, places, (slide) => words.get(slide.slide));
  return root;
}
