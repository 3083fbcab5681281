// Shorthands for the document.

export const $ = (selector) => document.querySelector(selector);

/** Creates an element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Creates a small square that shows the colour of a class. */
export function makeSwatch(colour) {
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = colour;
  return swatch;
}
