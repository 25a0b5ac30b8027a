// Agreement of the computed index with readers: of the sheet, and of those who scored here.

const MEASURE_WORDS = {
  icc_2_1: "ICC(2,1), absolute agreement",
  icc_3_1: "ICC(3,1), consistency",
  concordance: "Lin's concordance",
  bias: "Bias",
  limit_low: "Lower limit of agreement",
  limit_high: "Upper limit of agreement",
  pearson: "Pearson's r",
  spearman: "Spearman's ρ",
  rmse: "Root mean square error",
  mae: "Mean absolute error",
  within_1_point: "Slides within 1 point",
  within_5_points: "Slides within 5 points",
  same_category: "Slides in the same category",
  kappa_linear: "Kappa, linear weights",
  kappa_quadratic: "Kappa, quadratic weights",
  krippendorff_alpha: "Krippendorff's alpha",
};
const IN_POINTS = new Set(["bias", "limit_low", "limit_high", "rmse", "mae"]);
const IN_PERCENT = new Set(["within_1_point", "within_5_points", "same_category"]);

let chosenReader = null;

function agreementSection() {
  const all = readers();
  if (!all.length) return null;
  const body = h("div", {});
  const choice = h("select", { id: "reader-choice", onchange: () => { chosenReader = choice.value; draw(); } }, all.map((one) => h("option", { value: one.key }, one.name)));
  if (all.some((one) => one.key === chosenReader)) choice.value = chosenReader;
  const draw = () => {
    const reader = all.find((one) => one.key === choice.value);
    const pairs = SLIDES.map((slide) => ({ slide, reader: reader.value(slide) })).filter(({ slide, reader: value }) => isNumber(value) && isNumber(shown(slide, "index")));
    body.replaceChildren(...agreementBody(reader, pairs));
  };
  section = h("section", { class: "card", "aria-labelledby": "agreement-heading" },
    h("div", { class: "card-head" }, h("h2", { id: "agreement-heading" }, "Agreement with readers"), h("p", { class: "row" }, h("label", { for: "reader-choice" }, "Reader"), choice)),
    body,
  );
  drawWhenSized(section, draw);
  return section;
}

let section = null;

function agreementBody(reader, pairs) {
  if (!pairs.length) return [h("p", { class: "quiet" }, "No slide has both an index that may be shown and a score of this reader.")];
  const spread = bias(pairs);
  const room = section.clientWidth - 34;
  const size = Math.min(400, room >= 700 ? Math.floor((room - 320) / 2) : room);
  const plots = [
    (figure) => scatterPlot(figure, Math.max(260, size), pairs, reader.name),
    (figure) => differencePlot(figure, Math.max(260, size), pairs, reader.name, spread),
  ].map((draw, number) => {
    const frame = h("div", { class: "frame" });
    frame.append(draw(frame));
    return h("figure", {}, h("figcaption", {}, number ? "Difference against mean (Bland-Altman)" : "Index against reader"), frame);
  });
  return [h("div", { class: "agreement" }, ...plots, h("div", { class: "measures" }, agreementMeasures(reader, pairs, spread)))];
}

function bias(pairs) {
  const differences = pairs.map(({ slide, reader }) => slide.index - reader);
  const mean = differences.reduce((sum, value) => sum + value, 0) / differences.length;
  const square = differences.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const deviation = differences.length > 1 ? Math.sqrt(square / (differences.length - 1)) : NaN;
  return { bias: mean, low: mean - 1.96 * deviation, high: mean + 1.96 * deviation };
}

function agreementMeasures(reader, pairs, spread) {
  const known = !state.blind && reader.key.startsWith("sheet:") && (DATA.agreement.pairs ?? []).find((pair) => pair.first === "index" && pair.second === reader.column);
  if (known) return [measureTable(known.measures, `${known.n} slides, with 95 % intervals`), otherAgreement(reader)];
  const near = (most) => pairs.filter(({ slide, reader: value }) => Math.abs(slide.index - value) <= most + 1e-12).length / pairs.length;
  const measures = { bias: { value: spread.bias }, limit_low: { value: spread.low }, limit_high: { value: spread.high }, within_1_point: { value: near(0.01) }, within_5_points: { value: near(0.05) } };
  return measureTable(measures, `${pairs.length} slides`);
}

function otherAgreement(reader) {
  const raterName = (name) => (name === "index" ? "index" : readerName(name));
  const pairs = DATA.agreement.pairs.filter((pair) => !(pair.first === "index" && pair.second === reader.column));
  const groups = Object.entries(DATA.agreement.groups ?? {});
  if (!pairs.length && !groups.length) return null;
  return h("details", {}, h("summary", {}, "Other pairs, and all together"),
    pairs.map((pair) => measureTable(pair.measures, `${raterName(pair.first)} and ${raterName(pair.second)}, ${pair.n} slides`)),
    groups.map(([, group]) => measureTable(group.measures, group.raters.map(raterName).join(", "))));
}

function measureTable(measures, caption) {
  const words = (name, value) => {
    if (!isNumber(value)) return "–";
    if (IN_PERCENT.has(name)) return percent(value, 0);
    return IN_POINTS.has(name) ? points(value).replace("+", name === "rmse" || name === "mae" ? "" : "+") : value.toFixed(2);
  };
  // A reason that several measures share stands once, below.
  const reasons = Object.values(measures).filter(({ value }) => !isNumber(value)).map(({ reason }) => reason ?? "");
  const shared = [...new Set(reasons)].filter((reason) => reason && reasons.filter((one) => one === reason).length > 1);
  return h("table", { class: "pairs" }, h("caption", {}, caption),
    h("tbody", {}, Object.entries(measures).map(([name, { value, low, high, reason }]) => {
      const interval = isNumber(low) && isNumber(high) ? `${words(name, low).replace(" points", "").replace(" %", "")} to ${words(name, high).replace(" points", "").replace(" %", "")}` : "";
      return h("tr", {}, h("th", { scope: "row" }, MEASURE_WORDS[name] ?? name.replaceAll("_", " ")), h("td", {}, words(name, value)), h("td", { class: "quiet" }, interval || (isNumber(value) || shared.includes(reason) ? "" : reason ?? "")));
    })),
    shared.length ? h("tfoot", {}, shared.map((reason) => h("tr", {}, h("td", { class: "quiet", colspan: "3" }, `–: ${reason}`)))) : null,
  );
}
