// A slide: its pictures, its result, why it is flagged, every measure, and what made them.

const layers = { tumor: true, hot_spots: true, fields: true, marks: true };
const UNITS = 2; // of a path in a pixel, as ki67/report_pictures.py writes it

function detailsOf(slide) {
  return JSON.parse(document.getElementById(`details-${slide.number}`).textContent);
}

function slideView(slide, details) {
  const hidden = isHidden(slide);
  const page = details.page;
  const fields = [...page.fields].map((field, number) => ({ ...field, square: page.overview?.fields[number] })).sort((a, b) => a.y_mm - b.y_mm || a.x_mm - b.x_mm);
  return h("div", { class: "slide" },
    h("div", { class: "pictures" },
      h("div", { class: "whole-slide" },
        overviewFigure(slide, page, fields, hidden),
        registrationFigure(slide, page)),
      heatmapsSection(slide, page, hidden),
      fieldsSection(slide, page, fields, hidden),
    ),
    h("div", { class: "facts" },
      h("section", { class: "result", id: "result", tabindex: -1, "aria-label": "Result" }, hidden ? scoreForm(slide) : result(slide, details)),
      findingsSection(slide, details, hidden),
      hidden ? null : measuresSection(details),
      provenanceSection(details),
    ),
  );
}

function result(slide, details) {
  const known = details.measures;
  const score = [ownScore(slide)];
  if (!isNumber(slide.index)) return [h("p", { class: "big" }, "No index"), score];
  const kind = INTERVALS[known.interval] ?? "Wilson score interval";
  const sheet = readers().filter((reader) => reader.key.startsWith("sheet:") && isNumber(reader.value(slide)));
  return [
    h("p", { class: "big" }, percent(slide.index), h("span", { class: `category ${categoryClass(categoryOf(slide))}` }, categoryOf(slide))),
    intervalGlyph(slide, 320, 24, Math.min(1, Math.max(0.4, Math.ceil(10 * (slide.index_high ?? slide.index)) / 10))),
    h("p", {}, `95 % interval ${percent(slide.index_low)} to ${percent(slide.index_high)} (${kind})`),
    h("p", {}, `${count(slide.positive)} positive of ${count(slide.total)} tumour nuclei in ${decimals(slide.tumor_mm2, 2)} mm²`),
    sheet.map((reader) => h("p", {}, `${reader.name}: `, h("strong", {}, percent(reader.value(slide))), `, index ${points(slide.index - reader.value(slide))} from it`)),
    score,
  ];
}

function picturePart(picture, words) {
  return [svg("title", {}, words), svg("image", { href: picture.src, width: UNITS * picture.width, height: UNITS * picture.height })];
}

function pictureFrame(picture, words, ...parts) {
  // Larger than any screen, so that the style sheet alone decides how large it is.
  const [width, height] = [UNITS * picture.width, UNITS * picture.height];
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width: 4 * width, height: 4 * height, role: "img", "aria-label": words, class: "picture" }, picturePart(picture, words), parts);
}

function cased(path, kind) {
  return path ? [svg("path", { d: path, class: `${kind} case` }), svg("path", { d: path, class: kind })] : null;
}

function scaleBar(bar, picture) {
  const [x, y] = [16, UNITS * picture.height - 20];
  const wide = Math.max(bar.length + 24, 14 * bar.label.length + 24);
  return svg("g", { class: "scale-bar" },
    svg("rect", { x: x - 12, y: y - 36, width: wide, height: 50, class: "plate" }),
    svg("text", { x, y: y - 10 }, bar.label),
    svg("rect", { x, y: y - 2, width: bar.length, height: 7, class: "bar" }));
}

function absent(words, slide) {
  return h("p", { class: "absent" }, withoutId(words ?? "no picture", slide));
}

function layerSwitch(figure, layer, words) {
  const box = h("input", { type: "checkbox", checked: layers[layer] });
  box.addEventListener("change", () => {
    layers[layer] = box.checked;
    figure.classList.toggle(`without-${layer}`, !box.checked);
  });
  figure.classList.toggle(`without-${layer}`, !layers[layer]);
  return h("label", { class: "switch" }, box, words);
}

function largeSwitch(figure) {
  const toggle = button("Enlarge", () => {
    const large = figure.classList.toggle("large");
    toggle.textContent = large ? "Fit" : "Enlarge";
    toggle.setAttribute("aria-pressed", String(large));
  }, { class: "link", "aria-pressed": "false" });
  return toggle;
}

function overviewFigure(slide, page, fields, hidden) {
  const found = page.overview;
  if (!found) return h("figure", {}, h("figcaption", {}, "Slide"), absent(page.absent.overview, slide));
  const figure = h("figure", { class: "overview" });
  const squares = fields.map(({ square: [x, y, side] }, number) => svg("g", { class: "square" },
    svg("rect", { x, y, width: side, height: side, class: "case" }), svg("rect", { x, y, width: side, height: side }),
    svg("text", { x: x + side + 8, y: y + side / 2 + 10 }, "ABCDEFG"[number])));
  const spots = hidden ? "" : found.hot_spots;
  figure.append(
    h("figcaption", {}, h("span", {}, `${found.stain} with the edge of the tumour`),
      h("span", { class: "row" },
        found.tumor ? layerSwitch(figure, "tumor", "tumour") : null,
        spots ? layerSwitch(figure, "hot_spots", "hot spots") : null,
        fields.length ? layerSwitch(figure, "fields", "fields") : null,
        largeSwitch(figure))),
    pictureFrame(found.picture, `${found.stain} of ${slide.slide}`, cased(found.tumor, "tumor"), cased(spots, "hot-spots"), squares, scaleBar(found.scale_bar, found.picture)),
  );
  if (!found.tumor) figure.append(h("p", { class: "quiet" }, "No tumour was found."));
  return figure;
}

function heatmapsSection(slide, page, hidden) {
  const hint = hidden ? "hidden until you have scored this slide" : page.absent.heatmaps;
  if (hidden || !page.heatmaps.length) return h("section", {}, h("h3", {}, "Local index and hot spots"), absent(hint, slide));
  const group = h("section", { class: "fields", "aria-labelledby": "heatmaps-heading" });
  group.append(
    h("div", { class: "fields-head" }, h("h3", { id: "heatmaps-heading" }, "Local index and hot spots"),
      h("span", { class: "row" }, layerSwitch(group, "tumor", "tumour"), page.heatmaps[0].hot_spots ? layerSwitch(group, "hot_spots", "hot spots") : null)),
    h("div", { class: "row-of-maps" }, page.heatmaps.map((map) => heatmapFigure(map))));
  return group;
}

function heatmapFigure(map) {
  const figure = h("figure", {});
  const words = `${map.words.slice(0, 1).toUpperCase()}${map.words.slice(1)}`;
  figure.append(
    pictureFrame(map.picture, `${words}, coloured from 0 to ${map.top}`, cased(map.tumor, "tumor"), cased(map.hot_spots, "hot-spots"), scaleBar(map.scale_bar, map.picture)),
    h("figcaption", {}, h("span", {}, words, colorBar(map.top)), largeSwitch(figure)));
  return figure;
}

function colorBar(top) {
  const colors = DATA.heatmap_colors;
  const bar = svg("svg", { viewBox: `0 0 ${colors.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
    colors.map((color, place) => svg("rect", { x: place, width: 1.1, height: 1, fill: color })));
  return h("span", { class: "color-bar" }, h("span", {}, "0"), bar, h("span", {}, top));
}

function registrationFigure(slide, page) {
  const found = page.registration;
  const figure = h("figure", {});
  figure.append(
    h("figcaption", {}, h("span", {}, "Registration"), found ? largeSwitch(figure) : null),
    found ? pictureFrame(found.picture, `H&E in magenta and ${DATA.marker} in green, on top of each other`) : absent(page.absent.registration, slide),
    h("p", { class: "quiet" }, found ? `H&E magenta, ${DATA.marker} green, both gray. ${found.reason}` : ""),
  );
  return figure;
}

function fieldsSection(slide, page, fields, hidden) {
  if (!fields.length) return h("section", {}, h("h3", {}, "Fields"), absent(page.absent.fields, slide));
  const group = h("section", { class: "fields", "aria-labelledby": "fields-heading" });
  const marks = hidden ? null : layerSwitch(group, "marks", "mark nuclei (M)");
  if (marks) marks.firstChild.id = "marks";
  group.append(
    h("div", { class: "fields-head" }, h("h3", { id: "fields-heading" }, "Fields of 200 µm"),
      hidden ? null : h("span", { class: "row" },
        h("span", { class: "key positive" }, "positive"), h("span", { class: "key negative" }, "negative"), marks)),
    h("div", { class: "row-of-fields" }, fields.map((field, number) => fieldFigure(field, "ABCDEFG"[number], hidden))),
  );
  return group;
}

function fieldFigure(field, letter, hidden) {
  const place = `x ${field.x_mm.toFixed(1)} mm, y ${field.y_mm.toFixed(1)} mm`;
  const share = `${field.positive} of ${field.total} positive (${percent(field.positive / field.total, 0)})`;
  const words = hidden ? `Field ${letter}` : `Field ${letter}, ${field.name} local index, ${share}`;
  const figure = h("figure", {});
  const marks = hidden ? null : svg("g", { class: "marks" }, cased(field.negative_path, "negative"), cased(field.positive_path, "positive"));
  figure.append(
    pictureFrame(field.picture, words, field.tumor ? cased(field.tumor, "tumor") : null, marks, scaleBar(field.scale_bar, field.picture)),
    h("figcaption", {}, h("span", {}, h("strong", {}, `${letter} `), hidden ? place : [`${field.name} local index: ${share}`, h("br"), h("span", { class: "quiet" }, place)]), largeSwitch(figure)),
  );
  return figure;
}

function findingsSection(slide, details, hidden) {
  const visible = new Set(hidden ? shownFlags(slide) : slide.flags);
  const found = details.findings.filter(({ flag }) => visible.has(flag));
  if (!found.length) return h("section", {}, h("h3", {}, "Flags"), h("p", { class: "quiet" }, "none"));
  return h("section", {}, h("h3", {}, "Flags"),
    h("ul", { class: "findings" }, found.map(({ flag, message }) => h("li", {},
      h("span", { class: DATA.flags[flag]?.information ? "flag information" : "flag" }, DATA.flags[flag]?.words ?? flag), h("p", {}, withoutId(message, slide))))));
}

function withoutId(message, slide) {
  const start = `${slide.slide}: `;
  const rest = message.startsWith(start) ? message.slice(start.length) : message;
  return `${rest.slice(0, 1).toUpperCase()}${rest.slice(1)}.`;
}

function measuresSection(details) {
  return h("section", {}, h("h3", {}, "All measures"),
    DATA.measures.map(([heading, list]) => {
      const values = (keys) => keys.split(" ").map((key) => details.measures[key] ?? null);
      const known = list.filter(([keys]) => values(keys).some((value) => value !== null));
      if (!known.length) return null;
      return h("table", { class: "pairs" }, h("caption", {}, heading), h("tbody", {}, known.map(([keys, words, kind]) => {
        const [value, end] = values(keys);
        return h("tr", {}, h("th", { scope: "row" }, words), kind === "probability" ? h("td", {}, probabilityBar(value)) : h("td", {}, IN_WORDS[kind](value, end)));
      })));
    }));
}

function probabilityBar(value) {
  return h("span", { class: "probability" }, svg("svg", { width: 80, height: 8, class: "glyph", "aria-hidden": "true" },
    svg("rect", { width: 80, height: 8, class: "empty", rx: 2 }), svg("rect", { width: 80 * value, height: 8, class: "full", rx: 2 })),
  h("span", {}, value > 0 && value < 0.005 ? "<0.01" : value < 1 && value > 0.995 ? ">0.99" : value.toFixed(2)));
}

function provenanceSection(details) {
  const models = Object.entries(details.models);
  const seconds = Object.entries(details.seconds);
  const total = seconds.reduce((sum, [, value]) => sum + value, 0);
  const files = Object.entries(details.inputs).filter(([, file]) => file);
  const rowsOf = (pairs) => h("tbody", {}, pairs.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))));
  return h("details", { class: "provenance" }, h("summary", {}, "Provenance"),
    models.length ? h("table", { class: "pairs" }, h("caption", {}, "Models"), rowsOf(models.map(([stage, model]) => [
      stage.replaceAll("_", " "),
      [[model.method, model.name, model.precision].filter(Boolean).join(", "), model.sha256 ? [h("br"), h("code", { title: model.sha256 }, `sha256 ${model.sha256.slice(0, 16)}…`)] : null],
    ]))) : null,
    h("table", { class: "pairs" }, h("caption", {}, `Seconds, ${total.toFixed(0)} in all`), rowsOf(seconds.map(([stage, value]) => [stage, value.toFixed(1)]))),
    h("table", { class: "pairs" }, h("caption", {}, "Versions"), rowsOf(Object.entries(details.versions))),
    files.length ? h("table", { class: "pairs" }, h("caption", {}, "Files"), rowsOf(files.map(([stain, file]) => [stain, `${count(file.bytes)} bytes, sha256 ${file.sha256}`]))) : null,
    [["Settings", details.settings], ["Code", details.code]].map(([heading, byStage]) => {
      const rows = Object.entries(byStage).map(([stage, value]) => [stage, h("code", {}, typeof value === "string" ? value : JSON.stringify(value))]);
      return rows.length ? h("table", { class: "pairs" }, h("caption", {}, heading), rowsOf(rows)) : null;
    }),
  );
}
