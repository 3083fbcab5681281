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

/** Shows a message to the user until the next one. */
export function showMessage(text, isError = true) {
  $("#message").textContent = text;
  $("#message").classList.toggle("error", isError);
}

/** Runs an asynchronous function and shows its error if it fails. */
export const showErrors = (work) => work().catch((error) => showMessage(error.message));

let lastQuestion = Promise.resolve(); // one at a time

/** Asks the user to choose, in a dialog. Resolves to true for `yes`, and to false for `no` and the escape key. */
export function ask(text, yes, no) {
  lastQuestion = lastQuestion.then(() => showQuestion(text, yes, no));
  return lastQuestion;
}

function showQuestion(text, yes, no) {
  const dialog = $("#question");
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("[value=yes]").textContent = yes;
  dialog.querySelector("[value=no]").textContent = no;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Makes a list of rows one Tab stop: the arrow keys, Home and End move between them. */
export function rove(rows) {
  rows.forEach((row, i) => {
    row.tabIndex = i ? -1 : 0;
    row.addEventListener("focus", () => rows.forEach((other) => { other.tabIndex = other === row ? 0 : -1; }));
    row.addEventListener("keydown", (event) => {
      if (event.shiftKey) return; // pans the image
      const next = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      rows[next]?.focus();
    });
  });
}
