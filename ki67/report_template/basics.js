"use strict";

// Building blocks: elements, numbers in words. Text becomes text nodes, so that no text of a sheet is ever markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function button(words, action, attributes) {
  return h("button", { type: "button", onclick: action, ...attributes }, words);
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function percent(fraction, digits = 1) {
  return isNumber(fraction) ? `${(100 * fraction).toFixed(digits)} %` : "–";
}

function points(difference) {
  if (!isNumber(difference)) return "–";
  const rounded = (100 * difference).toFixed(1);
  const sign = Number(rounded) > 0 ? "+" : Number(rounded) < 0 ? "−" : "";
  return `${sign}${rounded.replace("-", "")} points`;
}

function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f") : "–";
}

function decimals(value, digits) {
  return isNumber(value) ? value.toFixed(digits) : "–";
}

const INTERVALS = { wilson: "Wilson score interval", block_bootstrap: "spatial block bootstrap" };
const SOURCES = { he: "the H&E, carried over", ki67: "the Ki-67 slide itself", roi: "a person" };

const IN_WORDS = {
  percent: (value) => percent(value),
  range: (low, high) => `${percent(low).replace(" %", "")} to ${percent(high)}`,
  points: (value) => points(value),
  count: (value) => count(value),
  mm2: (value) => (isNumber(value) ? `${value.toFixed(2)} mm²` : "–"),
  um: (value) => (isNumber(value) ? `${value.toFixed(1)} µm` : "–"),
  number: (value) => decimals(value, 2),
  probability: (value) => decimals(value, 2),
  interval: (value) => INTERVALS[value] ?? value ?? "–",
  source: (value) => SOURCES[value] ?? value ?? "–",
  text: (value) => value ?? "–",
};

function debounced(action, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}
