"use strict";
// Page data, as strip_report.py writes it.
// Image: name, state (index into STATES), probability, start on the strip, thumbnail, error, length of a row of pixels.
// Spot: index of the image, class index, area, left, top, width, height.
const data = JSON.parse(document.getElementById("data").textContent);
const STATES = ["clean", "defective", "unreadable"];
const PAGE_SIZE = { thumbs: 60, rows: 200 };
const byId = (id) => document.getElementById(id);
const shown = { ...PAGE_SIZE };
const order = { column: 2, ascending: false };

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const spotsOf = data.images.map(() => []);
data.spots.forEach((spot) => spotsOf[spot[0]].push(spot));
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
const area = (pixels) =>
  data.mmPerPixel ? `${number(pixels * data.mmPerPixel ** 2)} mm²` : `${number(pixels)} px`;

// Columns of the table of spots: title, text of a cell, sort key.
const COLUMNS = [
  ["image", (s) => data.images[s[0]][0], (s) => data.images[s[0]][0]],
  ["class", (s) => data.classes[s[1]], (s) => s[1]],
  ["area", (s) => area(s[2]), (s) => s[2]],
  [`position on the strip, ${data.unit}`, (s) => number(position(s)), position],
  ["left, px", (s) => number(s[3]), (s) => s[3]],
  ["top, px", (s) => number(s[4]), (s) => s[4]],
  ["width, px", (s) => number(s[5]), (s) => s[5]],
  ["height, px", (s) => number(s[6]), (s) => s[6]],
];

function position(spot) {
  const [, , , start, , , scale] = data.images[spot[0]];
  return start + (spot[4] + spot[6] / 2) * scale;
}

function applyFilters() {
  const words = byId("name").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("state").value;
  const smallest = Number(byId("area").value) || 0;
  const boxes = [...document.querySelectorAll("[name=class]")];
  const chosen = new Set(boxes.filter((box) => box.checked).map((box) => Number(box.value)));
  const hasSpotFilter = chosen.size < boxes.length || smallest > 0;
  const isSelected = (spot) => chosen.has(spot[1]) && spot[2] >= smallest;
  const images = [];
  data.images.forEach(([name, imageState], i) => {
    const text = name.toLowerCase();
    if (state !== "" && Number(state) !== imageState) return;
    if (!words.every((word) => text.includes(word))) return;
    if (hasSpotFilter && !spotsOf[i].some(isSelected)) return;
    images.push(i);
  });
  return { images, spots: images.flatMap((i) => spotsOf[i].filter(isSelected)) };
}

function picture(i) {
  const [name, state, , , thumbnail] = data.images[i];
  return thumbnail
    ? make("img", undefined, { src: `data:image/jpeg;base64,${thumbnail}`, alt: `${name}, ${STATES[state]}` })
    : make("span", "no thumbnail");
}

function describe(i) {
  const [name, state, probability] = data.images[i];
  return state === 2 ? `${name}: unreadable` : `${name}: ${STATES[state]}, p = ${probability.toFixed(2)}`;
}

function open(i) {
  const dialog = byId("one");
  const list = make("ul");
  const lines = data.images[i][1] === 2 ? [data.images[i][5]] : spotsOf[i].map((s) =>
    `${data.classes[s[1]]}: ${area(s[2])}, left ${s[3]}, top ${s[4]}, ${s[5]} x ${s[6]} px`);
  list.append(...lines.map((line) => make("li", line)));
  const close = make("button", "Close", { autofocus: "" });
  close.onclick = () => dialog.close();
  dialog.replaceChildren(make("h2", describe(i)), picture(i), list, close);
  dialog.showModal();
}

function updateButton(id, total, what) {
  byId(id).hidden = shown[what] >= total;
  byId(id).textContent = `Show more (${number(total - shown[what])} remaining)`;
}

function draw() {
  const { images, spots } = applyFilters();
  const [, , key] = COLUMNS[order.column];
  const sign = order.ascending ? 1 : -1;
  spots.sort((a, b) => (key(a) < key(b) ? -sign : key(a) > key(b) ? sign : 0));
  byId("count").textContent =
    `${number(images.length)} of ${count(data.images.length, "image")}, ` +
    `${number(spots.length)} of ${count(data.spots.length, "spot")}`;
  byId("thumbs").replaceChildren(...images.slice(0, shown.thumbs).map((i) => {
    const button = make("button", undefined, { type: "button", "data-state": data.images[i][1] });
    button.append(picture(i), make("span", describe(i)));
    button.onclick = () => open(i);
    return button;
  }));
  byId("spots").tBodies[0].replaceChildren(...spots.slice(0, shown.rows).map((spot) => {
    const row = make("tr", undefined, { tabindex: 0 });
    row.append(...COLUMNS.map(([, text]) => make("td", text(spot))));
    row.onclick = () => open(spot[0]);
    row.onkeydown = (event) => event.key === "Enter" && open(spot[0]);
    return row;
  }));
  document.querySelectorAll("#spots th").forEach((head, i) =>
    head.setAttribute("aria-sort", i !== order.column ? "none" : order.ascending ? "ascending" : "descending"));
  updateButton("more-thumbs", images.length, "thumbs");
  updateButton("more-rows", spots.length, "rows");
}

data.classes.forEach((name, c) => {
  const label = make("label");
  label.append(make("input", undefined, { type: "checkbox", name: "class", value: c, checked: "" }));
  label.append(make("i", undefined, { class: "swatch", style: `background:${data.colours[c]}` }), name);
  byId("classes").append(label);
});
const head = make("tr");
COLUMNS.forEach(([name], i) => {
  const cell = make("th", undefined, { scope: "col" });
  const button = make("button", name, { type: "button" });
  button.onclick = () => {
    order.ascending = order.column === i ? !order.ascending : true;
    order.column = i;
    draw();
  };
  cell.append(button);
  head.append(cell);
});
byId("spots").tHead.append(head);
byId("filters").oninput = () => { Object.assign(shown, PAGE_SIZE); draw(); };
byId("filters").onsubmit = (event) => event.preventDefault();
for (const [id, what] of [["more-thumbs", "thumbs"], ["more-rows", "rows"]])
  byId(id).onclick = () => { shown[what] += PAGE_SIZE[what]; draw(); };
document.querySelectorAll(".map [data-image]").forEach((mark) =>
  (mark.onclick = () => open(Number(mark.dataset.image))));
draw();
