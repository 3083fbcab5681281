// The inspection desk: images in, decisions shown, verdicts out. All state is here; pictures are viewer.js's.

import { ask, inspect, save } from "./service.js";
import { writeCodes, writeResults } from "./tables.js";
import { Viewer } from "./viewer.js";

const AT_ONCE = 4; // requests on their way; the service batches them
const SHIFT_HOURS = 8;
const ENDINGS = /\.(jpe?g|png|bmp|tiff?)$/i;
const WORDS = {
  agree: "agreed", missed: "missed", false_alarm: "false alarm",
  defective: "defective", unclear: "defective, nothing outlined", clean: "clean", unreadable: "unreadable",
};
const SIGNS = { defective: "●", unclear: "◐", clean: "○", unreadable: "×", waiting: "…" };

const $ = (selector) => document.querySelector(selector);
const viewer = new Viewer($("#picture"));
const images = []; // { file, row, answer, error, asked: the answer at other thresholds }
const waiting = [];
const verdicts = new Map(); // by the digest of the image's file
let model, thresholds, chosen = null, filter = "all", numRunning = 0, asking = 0;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const say = (text) => { $("#message").textContent = text; };
const attempt = (work) => work().catch((error) => say(error.message));

// ---- what is decided

const isMoved = () =>
  thresholds.gate !== model.gate || thresholds.labels.some((label, c) => label !== model.classes[c].label);

/** What an image is at the thresholds of the sliders, from its probabilities alone. */
function decide({ answer, error }) {
  if (error) return "unreadable";
  if (!answer) return "waiting";
  if (answer.gate_probability < thresholds.gate) return "clean";
  const outlined = model.classes.some(({ name }, c) =>
    answer.class_probabilities[name] >= thresholds.labels[c] && (isMoved() || answer.codes[name]));
  return outlined ? "defective" : "unclear";
}

// ---- images come in

async function listEntry(entry) {
  if (entry instanceof File) return [entry];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // A reader gives 100 at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return files;
    for (const inner of some) files.push(...(await listEntry(inner)));
  }
}

async function add(files) {
  files = [...files]; // an input's list is emptied with it
  await opened;
  const fresh = files.filter((file) => ENDINGS.test(file.name)).sort((a, b) => a.name.localeCompare(b.name));
  say(fresh.length ? "" : "No image among these: their names end in jpg, jpeg, png, bmp, tif or tiff.");
  for (const file of fresh) {
    const image = { file, answer: null, error: null, asked: null };
    image.row = make("li", { role: "option", title: file.name, onclick: () => choose(image) },
      make("canvas", { width: 126, height: 28 }), make("span", {}, file.name));
    images.push(image);
    waiting.push(image);
    $("#strip").append(image.row);
    mark(image);
  }
  if (!images.length) return;
  $("#empty").hidden = true;
  $("#desk").hidden = false;
  if (!chosen) choose(images[0]);
  while (numRunning < AT_ONCE && waiting.length) work();
  tell();
}

async function work() {
  numRunning++;
  for (let image; (image = waiting.shift());) {
    await Promise.all([inspect(image.file).then((answer) => { image.answer = answer; })
      .catch((error) => { image.error = error.message; }), drawThumbnail(image)]);
    mark(image);
    tell();
    if (image === chosen) showAnswer();
  }
  numRunning--;
  tell();
  if (!numRunning) attempt(async () => showDrift(await (await ask("v1/model")).json()));
}

function showDrift({ drift }) {
  $("#drift").hidden = !drift;
  $("#drift").textContent = drift ?? "";
}

// Pixels as they are stored, as the service takes them, whatever a camera says of up and down.
const decode = (file, options) => createImageBitmap(file, { imageOrientation: "none", ...options });

async function drawThumbnail({ file, row }) {
  const bitmap = await decode(file, { resizeWidth: 126, resizeQuality: "medium" }).catch(() => null);
  if (!bitmap) return; // a TIFF: the browser cannot show it, the service can read it
  const canvas = row.firstChild;
  canvas.height = Math.min(bitmap.height, 126);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}

// ---- what is shown of all

function mark(image) {
  const decision = decide(image);
  const verdict = image.answer && verdicts.get(image.answer.digest);
  image.row.dataset.decision = decision;
  image.row.hidden = filter !== "all" && filter !== (verdict ? "judged" : "unjudged") && filter !== decision;
  image.row.lastChild.textContent = `${SIGNS[decision]}${verdict ? " ✓" : ""} ${image.file.name}`;
}

function tell() {
  const counts = { defective: 0, unclear: 0, clean: 0, unreadable: 0, waiting: 0 };
  for (const image of images) counts[decide(image)]++;
  const done = images.length - counts.waiting;
  $("#progress").hidden = done === images.length;
  Object.assign($("#progress"), { max: images.length || 1, value: done });
  const kinds = { agree: 0, missed: 0, false_alarm: 0 };
  for (const { verdict } of verdicts.values()) kinds[verdict]++;
  const shown = {
    inspected: done, defective: counts.defective + counts.unclear, clean: counts.clean,
    ...(counts.unreadable ? { unreadable: counts.unreadable } : {}),
    "agreed": kinds.agree, "missed": kinds.missed, "false alarms": kinds.false_alarm,
  };
  $("#counts").title = `Images of this page; verdicts of the last ${SHIFT_HOURS} hours and of this page`;
  $("#counts").replaceChildren(...Object.entries(shown).map(([name, count]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, count.toLocaleString("en")))));
  $("#filters").replaceChildren(...["all", "defective", "unclear", "clean", "unreadable", "unjudged"]
    .filter((name) => name === filter || ["all", "unjudged"].includes(name) || counts[name])
    .map((name) => make("button", {
      ariaPressed: String(name === filter),
      onclick: () => { filter = name; refresh(); },
    }, WORDS[name] ?? { all: "all", unjudged: "without a verdict" }[name])));
}

function refresh() {
  images.forEach(mark);
  tell();
}

// ---- what is shown of one

async function choose(image) {
  chosen?.row.setAttribute("aria-selected", "false");
  chosen = image;
  image.row.setAttribute("aria-selected", "true");
  image.row.scrollIntoView({ block: "nearest", inline: "nearest" });
  $("#name").textContent = image.file.name;
  const bitmap = await decode(image.file).catch(() => null);
  if (image !== chosen) return;
  if (!bitmap && image.answer) say("This browser cannot show the file itself; its masks are below.");
  viewer.show(bitmap, bitmap ? [bitmap.height, bitmap.width] : image.answer?.size ?? [256, 1600]);
  showAnswer();
}

/** Everything about the chosen image; at moved thresholds the service is asked again, for it knows the pixels. */
function showAnswer() {
  const answer = isMoved() ? chosen.asked : chosen.answer;
  const decision = decide(chosen);
  $("#decision").className = decision;
  $("#decision").textContent = chosen.error ?? (chosen.answer
    ? `${SIGNS[decision]} ${WORDS[decision]}, probability ${chosen.answer.gate_probability.toFixed(2)}` : "waiting");
  showClasses();
  showDefects(answer);
  showVerdict();
  viewer.lay(model.classes.map(({ name }) => answer?.codes[name] ?? ""), model.classes.map(({ colour }) => colour));
  if (isMoved() && !answer && chosen.answer) askAgain();
}

function askAgain() {
  const image = chosen, mine = ++asking;
  // A slider that moves sends many values; only where it rests is worth a question.
  setTimeout(() => attempt(async () => {
    if (mine !== asking || image !== chosen || !isMoved()) return;
    const answer = await inspect(image.file, thresholds);
    if (mine !== asking || image !== chosen) return;
    image.asked = answer;
    showAnswer();
  }), 150);
}

function buildSlider(value, label, onmove) {
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.01, value, ariaLabel: label });
  slider.addEventListener("input", () => {
    onmove(Number(slider.value));
    for (const image of images) image.asked = null;
    refresh();
    if (chosen) showAnswer();
  });
  return slider;
}

function buildClasses() {
  const rows = model.classes.map(({ name, colour, label }, c) => {
    const shown = make("input", { type: "checkbox", checked: true, ariaLabel: `Mask of class ${name}` });
    shown.addEventListener("change", () => { viewer.visible[c] = shown.checked; viewer.draw(); });
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = colour;
    const slider = buildSlider(label, `Threshold of class ${name}`, (value) => { thresholds.labels[c] = value; });
    return make("tr", {}, make("td", {}, shown), make("td", { className: "name" }, swatch, name),
      make("td", {}, make("meter", { min: 0, max: 1 }), " ", make("output")),
      make("td", {}, slider, " ", make("output")), make("td", { className: "number" }, label.toFixed(2)));
  });
  const gate = buildSlider(model.gate, "Gate", (value) => { thresholds.gate = value; });
  rows.push(make("tr", { id: "gate" }, make("td"), make("td", { className: "name" }, "any (gate)"),
    make("td", {}, make("meter", { min: 0, max: 1 }), " ", make("output")),
    make("td", {}, gate, " ", make("output")), make("td", { className: "number" }, model.gate.toFixed(2))));
  $("#classes tbody").replaceChildren(...rows);
  viewer.visible = model.classes.map(() => true);
  $("#verdict-class").replaceChildren(make("option", { value: "" }, "any"),
    ...model.classes.map(({ name }) => make("option", { value: name }, name)));
}

function showClasses() {
  const levels = [...thresholds.labels, thresholds.gate];
  [...$("#classes tbody").rows].forEach((row, c) => {
    const answer = chosen?.answer;
    const name = model.classes[c]?.name;
    const probability = answer ? (name === undefined ? answer.gate_probability : answer.class_probabilities[name]) : 0;
    const [bar, level] = [row.cells[2], row.cells[3]];
    bar.firstChild.value = probability;
    bar.lastChild.textContent = answer ? probability.toFixed(2) : "";
    level.firstChild.value = levels[c];
    level.lastChild.textContent = levels[c].toFixed(2);
    const isCalled = answer && answer.gate_probability >= thresholds.gate && probability >= levels[c];
    row.classList.toggle("over", Boolean(isCalled));
  });
  $("#promised").hidden = $("#what-if").hidden = !isMoved();
}

function showDefects(answer) {
  const spots = [...(answer?.spots ?? [])].sort((a, b) => b.area_pixels - a.area_pixels);
  const inMm = model.mm_per_pixel !== null;
  $("#defects thead").replaceChildren(make("tr", {}, ...["Class", inMm ? "Area, mm²" : "Area, pixels", "At x, y"]
    .map((text, i) => make("th", { className: i === 1 ? "number" : "" }, text))));
  $("#defects tbody").replaceChildren(...spots.slice(0, 500).map((spot) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = model.classes.find(({ name }) => name === spot.class).colour;
    const area = inMm ? spot.area_mm2.toFixed(1) : spot.area_pixels.toLocaleString("en");
    const [x, y] = spot.centroid.map(Math.round);
    const go = () => viewer.zoomTo(spot.box);
    const row = make("tr", { tabIndex: 0, onclick: go }, make("td", {}, swatch, spot.class),
      make("td", { className: "number" }, area), make("td", {}, `${x}, ${y}`));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
    return row;
  }));
  $("#defects-title").textContent = spots.length > 500
    ? `Defects (the 500 largest spots of ${spots.length.toLocaleString("en")})` : `Defects (${spots.length} spot${spots.length === 1 ? "" : "s"})`;
}

function showPromises() {
  const promises = model.tuned?.promises ?? [];
  if (!promises.length) {
    $("#promises div").textContent = "Nothing: the thresholds of this file were not tuned (`steel tune`).";
    return;
  }
  const rows = promises.map(({ name, value, interval }) =>
    [name, value === null ? "" : value.toFixed(3), interval.map((end) => end === null ? "∞" : end.toFixed(3)).join(" to ")]);
  $("#promises div").replaceChildren(make("table", {}, ...[["", "expected", "95 % interval"], ...rows].map((cells) =>
    make("tr", {}, ...cells.map((cell) => make("td", {}, cell))))));
}

// ---- verdicts

function showVerdict() {
  const verdict = chosen?.answer && verdicts.get(chosen.answer.digest);
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.ariaPressed = String(verdict?.verdict === button.dataset.verdict);
    button.disabled = !chosen?.answer || isMoved();
  }
  $("#take-back").hidden = !verdict;
  $("#judged").textContent = verdict ? `✓ ${WORDS[verdict.verdict]}${verdict.class ? `, class ${verdict.class}` : ""}` +
    `${verdict.inspector ? ` (${verdict.inspector})` : ""}` : "";
}

async function judge(verdict) {
  const image = chosen;
  if (!image?.answer || isMoved()) return;
  const { digest, size, defective, codes } = image.answer;
  const question = {
    image: image.file.name, size, verdict, defective, codes, inspector: $("#inspector").value,
    class: verdict === "agree" ? null : $("#verdict-class").value || null,
  };
  const answer = await ask(`v1/verdicts/${digest}`, {
    method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
  });
  verdicts.set(digest, await answer.json());
  $("#verdict-class").value = "";
  settle(image);
}

async function takeBack() {
  const image = chosen;
  await ask(`v1/verdicts/${image.answer.digest}`, { method: "DELETE" });
  verdicts.delete(image.answer.digest);
  settle(image);
}

function settle(image) {
  say("");
  mark(image);
  tell();
  if (image === chosen) showVerdict();
}

// ---- what the user does

function step(by) {
  const shown = images.filter((image) => !image.row.hidden || image === chosen);
  const next = shown[shown.indexOf(chosen) + by];
  if (next) choose(next);
}

const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  a: () => attempt(() => judge("agree")), m: () => attempt(() => judge("missed")),
  f: () => attempt(() => judge("false_alarm")),
  "+": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5), 0: () => viewer.fit(),
};
const PANS = { ArrowRight: [80, 0], ArrowLeft: [-80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };

function press(event) {
  if (!chosen || event.ctrlKey || event.metaKey || event.altKey) return;
  const where = event.target;
  if (where.matches("input:not([type=checkbox]), select, dialog *")) return;
  const mask = /^[1-8]$/.test(event.key) && $("#classes tbody").rows[event.key - 1]?.querySelector("[type=checkbox]");
  const act = event.shiftKey && PANS[event.key] ? () => viewer.pan(...PANS[event.key])
    : mask ? () => mask.click() : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

const DOWNLOADS = {
  "results.csv": async () => writeResults(images, model.classes, verdicts),
  "submission.csv": async () => writeCodes(images, model.classes),
  "verdicts.csv": async () => (await ask("v1/verdicts.csv")).blob(),
  "labels.zip": async () => (await ask("v1/labels.zip")).blob(),
};

function listen() {
  for (const kind of ["images", "folder"]) {
    $(`#add-${kind}`).onclick = () => $(`#${kind}`).click();
    $(`#${kind}`).onchange = (event) => { add(event.target.files); event.target.value = ""; };
  }
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const entries = [...event.dataTransfer.items].filter((item) => item.kind === "file")
      .map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
    attempt(async () => add((await Promise.all(entries.map(listEntry))).flat()));
  });
  addEventListener("keydown", press);
  addEventListener("beforeunload", (event) => { if (waiting.length) event.preventDefault(); });
  $("#opacity").oninput = (event) => { viewer.opacity = Number(event.target.value); viewer.draw(); };
  $("#promised").onclick = () => { reset(); refresh(); showAnswer(); };
  $("#take-back").onclick = () => attempt(takeBack);
  $("#inspector").value = localStorage.getItem("steel-inspector") ?? "";
  $("#inspector").onchange = (event) => localStorage.setItem("steel-inspector", event.target.value);
  const zooms = { in: () => viewer.zoom(1.5), out: () => viewer.zoom(1 / 1.5), fit: () => viewer.fit() };
  for (const button of document.querySelectorAll("[data-zoom]")) button.onclick = zooms[button.dataset.zoom];
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.onclick = () => attempt(() => judge(button.dataset.verdict));
  }
  for (const button of document.querySelectorAll("[data-download]")) {
    const name = button.dataset.download;
    button.onclick = () => { $("#downloads").open = false; attempt(async () => save(name, await DOWNLOADS[name]())); };
  }
}

function reset() {
  thresholds = { gate: model.gate, labels: model.classes.map(({ label }) => label) };
}

listen();
const opened = attempt(async () => {
  model = await (await ask("v1/model")).json();
  reset();
  showDrift(model);
  for (const verdict of (await (await ask(`v1/verdicts?hours=${SHIFT_HOURS}`)).json()).verdicts) {
    verdicts.set(verdict.digest, verdict);
  }
  buildClasses();
  showPromises();
  tell();
});
