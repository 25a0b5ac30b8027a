// Plots as SVG, drawn anew for the width there is. The table holds the same values for those who do not see them.

function plotArea(width, height, margin, label) {
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "plot" });
  const inner = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  return { root, inner };
}

function linear(low, high, from, to) {
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  return scale;
}

function ticks(low, high, most) {
  const step = [1, 2, 5, 10, 20, 25, 50].find((one) => (high - low) / one <= most) ?? 100;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(value);
  return found;
}

function axisLeft(root, inner, scale, values, title) {
  for (const value of values) {
    const y = scale(value);
    root.append(
      svg("line", { x1: inner.left, x2: inner.right, y1: y, y2: y, class: "grid" }),
      svg("text", { x: inner.left - 6, y: y + 4, class: "tick", "text-anchor": "end" }, String(value).replace("-", "−")),
    );
  }
  root.append(svg("text", { x: inner.left - 34, y: inner.top - 10, class: "axis" }, title));
}

function axisBottom(root, inner, scale, values, title) {
  for (const value of values) {
    root.append(svg("text", { x: scale(value), y: inner.bottom + 16, class: "tick", "text-anchor": "middle" }, value));
  }
  root.append(svg("text", { x: (inner.left + inner.right) / 2, y: inner.bottom + 33, class: "axis", "text-anchor": "middle" }, title));
}

function dot(x, y, radius, slide) {
  const hollow = needsALook(slide) ? " hollow" : "";
  return svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: radius, class: `dot ${categoryClass(categoryOf(slide))}${hollow}` });
}

// One listener for all dots: the nearest within reach is named, and opens its slide when clicked.
function followPointer(frame, root, places, words) {
  const tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
  const ring = svg("circle", { r: 7, class: "ring", visibility: "hidden" });
  root.append(ring);
  frame.append(tip);
  const nearest = (event) => {
    const box = root.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = 24 ** 2;
    for (const place of places) {
      const far = (place.x - x) ** 2 + ((place.y - y) * (place.reach ?? 1)) ** 2;
      if (far < distance) [best, distance] = [place, far];
    }
    return best;
  };
  root.addEventListener("pointermove", (event) => {
    const place = nearest(event);
    tip.hidden = !place;
    ring.setAttribute("visibility", place ? "visible" : "hidden");
    root.classList.toggle("pointing", Boolean(place));
    if (!place) return;
    ring.setAttribute("cx", place.x);
    ring.setAttribute("cy", place.y);
    tip.textContent = words(place.slide);
    const width = root.getBoundingClientRect().width;
    tip.style.left = `${Math.min(Math.max(0, place.x - 60), Math.max(0, width - 230))}px`;
    tip.style.top = `${place.y + 14}px`;
  });
  root.addEventListener("pointerleave", () => {
    tip.hidden = true;
    ring.setAttribute("visibility", "hidden");
  });
  root.addEventListener("click", (event) => {
    const place = nearest(event);
    if (place) openSlide(place.slide);
  });
}

function indexWords(slide) {
  return `${slide.slide}: ${percent(slide.index)} (${percent(slide.index_low)} to ${percent(slide.index_high)})`;
}

// Every index with its interval, lowest first.
function distributionPlot(frame, width) {
  const visible = SLIDES.filter((slide) => isNumber(shown(slide, "index"))).sort((a, b) => a.index - b.index);
  if (!visible.length) return h("p", { class: "quiet" }, state.blind ? "Indices appear here as slides are scored." : "No slide has an index.");
  const height = 300;
  const highest = Math.max(...visible.map((slide) => slide.index_high ?? slide.index), 0.28) * 100;
  const most = Math.min(100, 5 * Math.ceil((highest * 1.03) / 5));
  const label = `${DATA.marker} index of ${visible.length} slides with 95 % intervals, from ${percent(visible[0].index)} to ${percent(visible.at(-1).index)}; the table below holds every value`;
  const { root, inner } = plotArea(width, height, { left: 40, right: 12, top: 30, bottom: 28 }, label);
  const x = linear(-0.5, visible.length - 0.5, inner.left + 6, inner.right - 6);
  const y = linear(0, most, inner.bottom, inner.top);
  axisLeft(root, inner, y, ticks(0, most, 6), `${DATA.marker} index, %`);
  for (const cutoff of DATA.cutoffs) {
    root.append(
      svg("line", { x1: inner.left, x2: inner.right, y1: y(100 * cutoff), y2: y(100 * cutoff), class: "cutoff" }),
      svg("text", { x: inner.left + 4, y: y(100 * cutoff) - 4, class: "tick" }, `${100 * cutoff} %`),
    );
  }
  const radius = visible.length <= 60 ? 4 : visible.length <= 400 ? 2.6 : 1.5;
  const lines = new Map();
  const places = visible.map((slide, rank) => {
    const at = { x: x(rank), y: y(100 * slide.index), slide, reach: 0.25 };
    if (isNumber(slide.index_low)) {
      const key = categoryClass(categoryOf(slide));
      const line = `M${at.x.toFixed(1)} ${y(100 * slide.index_low).toFixed(1)}V${y(100 * slide.index_high).toFixed(1)}`;
      lines.set(key, (lines.get(key) ?? "") + line);
    }
    return at;
  });
  for (const [key, path] of lines) root.append(svg("path", { d: path, class: `interval ${key}${visible.length > 400 ? " thin" : ""}` }));
  for (const place of places) root.append(dot(place.x, place.y, radius, place.slide));
  root.append(svg("text", { x: (inner.left + inner.right) / 2, y: inner.bottom + 20, class: "axis", "text-anchor": "middle" }, "slides, lowest index first"));
  followPointer(frame, root, places, indexWords);
  return root;
}

// An interval on a line from 0 to 100 %, small enough for a row of the table.
function intervalGlyph(slide, width, height, scaleTo) {
  const x = linear(0, scaleTo, 0.5, width - 0.5);
  const middle = height / 2;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "glyph", "aria-hidden": "true" });
  root.append(svg("line", { x1: 0, x2: width, y1: middle, y2: middle, class: "grid" }));
  for (const cutoff of DATA.cutoffs) {
    if (cutoff <= scaleTo) root.append(svg("line", { x1: x(cutoff), x2: x(cutoff), y1: 1, y2: height - 1, class: "cutoff" }));
  }
  const kind = categoryClass(categoryOf(slide));
  if (isNumber(slide.index_low)) {
    root.append(svg("line", { x1: x(slide.index_low), x2: x(Math.min(scaleTo, slide.index_high)), y1: middle, y2: middle, class: `range ${kind}` }));
  }
  root.append(svg("circle", { cx: x(slide.index), cy: middle, r: height > 20 ? 6 : 3.5, class: `dot ${kind}` }));
  return root;
}

// Reader against index, with the line on which both are equal.
function scatterPlot(frame, size, pairs, name) {
  const highest = Math.max(...pairs.flatMap((pair) => [pair.reader, pair.slide.index_high ?? pair.slide.index]), 0.28);
  const most = Math.min(100, 5 * Math.ceil((103 * highest) / 5));
  const { root, inner } = plotArea(size, size, { left: 40, right: 12, top: 30, bottom: 42 }, `Index against ${name}, ${pairs.length} slides`);
  const x = linear(0, most, inner.left, inner.right);
  const y = linear(0, most, inner.bottom, inner.top);
  const values = ticks(0, most, 6);
  axisLeft(root, inner, y, values, "computed index, %");
  axisBottom(root, inner, x, values, `${name}, %`);
  for (const cutoff of DATA.cutoffs.map((one) => 100 * one)) {
    root.append(
      svg("line", { x1: x(cutoff), x2: x(cutoff), y1: inner.top, y2: inner.bottom, class: "cutoff" }),
      svg("line", { x1: inner.left, x2: inner.right, y1: y(cutoff), y2: y(cutoff), class: "cutoff" }),
    );
  }
  root.append(svg("line", { x1: x(0), x2: x(most), y1: y(0), y2: y(most), class: "identity" }));
  const places = pairs.map(({ slide, reader }) => ({ x: x(100 * reader), y: y(100 * slide.index), slide }));
  root.append(svg("path", { class: "interval", d: pairs.filter(({ slide }) => isNumber(slide.index_low)).map(({ slide, reader }) => `M${x(100 * reader).toFixed(1)} ${y(100 * slide.index_low).toFixed(1)}V${y(100 * slide.index_high).toFixed(1)}`).join("") }));
  for (const place of places) root.append(dot(place.x, place.y, pairs.length > 100 ? 2.6 : 3.6, place.slide));
  followPointer(frame, root, places, indexWords);
  return root;
}

// Differences against means (Bland & Altman 1986), with bias and limits of agreement.
function differencePlot(frame, size, pairs, name, spread) {
  const differences = pairs.map(({ slide, reader }) => 100 * (slide.index - reader));
  const drawn = [...differences, 100 * spread.low, 100 * spread.high, 4].filter(isNumber).map(Math.abs);
  const reach = 5 * Math.ceil((1.1 * Math.max(...drawn)) / 5);
  const most = Math.min(100, 5 * Math.ceil((103 * Math.max(...pairs.map(({ slide, reader }) => (slide.index + reader) / 2), 0.28)) / 5));
  const { root, inner } = plotArea(size, size, { left: 40, right: 12, top: 30, bottom: 42 }, `Bland-Altman plot of the index and ${name}: bias ${points(spread.bias)}, limits of agreement ${points(spread.low)} to ${points(spread.high)}`);
  const x = linear(0, most, inner.left, inner.right);
  const y = linear(-reach, reach, inner.bottom, inner.top);
  axisLeft(root, inner, y, ticks(-reach, reach, 8), "index − reader, points");
  axisBottom(root, inner, x, ticks(0, most, 6), "mean of both, %");
  root.append(svg("line", { x1: inner.left, x2: inner.right, y1: y(0), y2: y(0), class: "identity" }));
  for (const [value, words, below] of [[spread.bias, "bias", spread.bias < 0], [spread.high, "upper limit", false], [spread.low, "lower limit", true]]) {
    if (!isNumber(value)) continue;
    root.append(
      svg("line", { x1: inner.left, x2: inner.right, y1: y(100 * value), y2: y(100 * value), class: words === "bias" ? "bias" : "limit" }),
      svg("text", { x: inner.right, y: y(100 * value) + (below ? 14 : -5), class: "tick halo", "text-anchor": "end" }, `${words} ${points(value)}`),
    );
  }
  const places = pairs.map(({ slide, reader }) => ({ x: x(50 * (slide.index + reader)), y: y(100 * (slide.index - reader)), slide }));
  for (const place of places) root.append(dot(place.x, place.y, pairs.length > 100 ? 2.6 : 3.6, place.slide));
  followPointer(frame, root, places, indexWords);
  return root;
}
