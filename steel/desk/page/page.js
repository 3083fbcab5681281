// The inspection desk: adds images, shows decisions, and saves verdicts. This file holds all state.

import { $, make, makeSwatch } from "./dom.js";
import { decode, drawThumbnail, listFiles } from "./files.js";
import { makeClassRow, showDefects, showPromises } from "./panels.js";
import { inspect, request, saveFile } from "./service.js";
import { buildResults, buildSubmission } from "./tables.js";
import { Viewer } from "./viewer.js";

const MAX_REQUESTS = 4; // in parallel; the service combines them into batches
const SHIFT_HOURS = 8;
const FILE_NAMES = /\.(jpe?g|png|bmp|tiff?)$/i;
const LABELS = {
  agree: "agreed", missed: "missed", false_alarm: "false alarm",
  defective: "defective", unclear: "defective, nothing outlined", clean: "clean", unreadable: "unreadable",
  all: "all", unjudged: "no verdict",
};
const SIGNS = { defective: "●", unclear: "◐", clean: "○", unreadable: "×", waiting: "…" };

const viewer = new Viewer($("#picture"));
const images = []; // { file, row, answer, error, whatIf: the answer at other thresholds }
const waiting = [];
const verdicts = new Map(); // by the digest of the image file
let model, thresholds, selected = null, filter = "all", numWorkers = 0, numWhatIfs = 0;

const showMessage = (text) => { $("#message").textContent = text; };
const showErrors = (work) => work().catch((error) => showMessage(error.message));

// ---- decisions

const isWhatIf = () =>
  thresholds.gate !== model.gate || thresholds.labels.some((label, c) => label !== model.classes[c].label);

/** Returns the decision on an image at the thresholds of the sliders, from its probabilities. */
function decide({ answer, error }) {
  if (error) return "unreadable";
  if (!answer) return "waiting";
  if (answer.gate_probability < thresholds.gate) return "clean";
  const isOutlined = model.classes.some(({ name }, c) =>
    answer.class_probabilities[name] >= thresholds.labels[c] && (isWhatIf() || answer.codes[name]));
  return isOutlined ? "defective" : "unclear";
}

function resetThresholds() {
  thresholds = { gate: model.gate, labels: model.classes.map(({ label }) => label) };
}

// ---- adding and inspecting images

async function addFiles(files) {
  files = [...files]; // a copy: the list of an input is emptied together with the input
  await opened;
  const supported = files.filter((file) => FILE_NAMES.test(file.name)).sort((a, b) => a.name.localeCompare(b.name));
  showMessage(supported.length ? ""
    : "No images found. File names must end in .jpg, .jpeg, .png, .bmp, .tif or .tiff.");
  for (const file of supported) {
    const image = { file, answer: null, error: null, whatIf: null };
    image.row = make("li", { role: "option", title: file.name, onclick: () => select(image) },
      make("canvas", { width: 126, height: 28 }), make("span", {}, file.name));
    images.push(image);
    waiting.push(image);
    $("#strip").append(image.row);
    showThumbnail(image);
  }
  if (!images.length) return;
  $("#empty").hidden = true;
  $("#desk").hidden = false;
  if (!selected) select(images[0]);
  while (numWorkers < MAX_REQUESTS && waiting.length) inspectWaiting();
  showCounts();
}

async function inspectWaiting() {
  numWorkers++;
  for (let image; (image = waiting.shift());) {
    await Promise.all([inspect(image.file).then((answer) => { image.answer = answer; })
      .catch((error) => { image.error = error.message; }), drawThumbnail(image.file, image.row.firstChild)]);
    showThumbnail(image);
    showCounts();
    if (image === selected) showAnswer();
  }
  numWorkers--;
  showCounts();
  if (!numWorkers) showErrors(async () => showDrift(await (await request("v1/model")).json()));
}

function showDrift({ drift }) {
  $("#drift").hidden = !drift;
  $("#drift").textContent = drift ?? "";
}

// ---- all images

function showThumbnail(image) {
  const decision = decide(image);
  const verdict = image.answer && verdicts.get(image.answer.digest);
  image.row.dataset.decision = decision;
  image.row.hidden = filter !== "all" && filter !== (verdict ? "judged" : "unjudged") && filter !== decision;
  image.row.lastChild.textContent = `${SIGNS[decision]}${verdict ? " ✓" : ""} ${image.file.name}`;
}

function showCounts() {
  const decisions = { defective: 0, unclear: 0, clean: 0, unreadable: 0, waiting: 0 };
  for (const image of images) decisions[decide(image)]++;
  const numInspected = images.length - decisions.waiting;
  $("#progress").hidden = numInspected === images.length;
  Object.assign($("#progress"), { max: images.length || 1, value: numInspected });
  const kinds = { agree: 0, missed: 0, false_alarm: 0 };
  for (const { verdict } of verdicts.values()) kinds[verdict]++;
  const counts = {
    inspected: numInspected, defective: decisions.defective + decisions.unclear, clean: decisions.clean,
    ...(decisions.unreadable ? { unreadable: decisions.unreadable } : {}),
    "agreed": kinds.agree, "missed": kinds.missed, "false alarms": kinds.false_alarm,
  };
  $("#counts").title = `Images on this page, and verdicts given on this page or in the last ${SHIFT_HOURS} hours`;
  $("#counts").replaceChildren(...Object.entries(counts).map(([name, count]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, count.toLocaleString("en")))));
  showFilters(decisions);
}

function showFilters(decisions) {
  const names = ["all", "defective", "unclear", "clean", "unreadable", "unjudged"]
    .filter((name) => name === filter || ["all", "unjudged"].includes(name) || decisions[name]);
  $("#filters").replaceChildren(...names.map((name) => make("button", {
    ariaPressed: String(name === filter),
    onclick: () => { filter = name; showAll(); },
  }, LABELS[name])));
}

function showAll() {
  images.forEach(showThumbnail);
  showCounts();
}

// ---- the selected image

async function select(image) {
  selected?.row.setAttribute("aria-selected", "false");
  selected = image;
  image.row.setAttribute("aria-selected", "true");
  image.row.scrollIntoView({ block: "nearest", inline: "nearest" });
  $("#name").textContent = image.file.name;
  const bitmap = await decode(image.file).catch(() => null);
  if (image !== selected) return;
  if (!bitmap && image.answer) showMessage("Your browser cannot display this file. Only its masks are shown.");
  viewer.show(bitmap, bitmap ? [bitmap.height, bitmap.width] : image.answer?.size ?? [256, 1600]);
  showAnswer();
}

/** Shows the result for the selected image; at other thresholds it comes from another request. */
function showAnswer() {
  const answer = isWhatIf() ? selected.whatIf : selected.answer;
  const decision = decide(selected);
  $("#decision").className = decision;
  $("#decision").textContent = selected.error ?? (selected.answer
    ? `${SIGNS[decision]} ${LABELS[decision]}, probability ${selected.answer.gate_probability.toFixed(2)}`
    : "waiting for the result");
  showClasses();
  showDefects(answer?.spots ?? [], model, viewer);
  showVerdict();
  viewer.setMasks(model.classes.map(({ name }) => answer?.codes[name] ?? ""),
    model.classes.map(({ colour }) => colour));
  if (isWhatIf() && !answer && selected.answer) inspectWhatIf();
}

function inspectWhatIf() {
  const image = selected, number = ++numWhatIfs;
  // A moving slider sends many values; send a request only once it rests.
  setTimeout(() => showErrors(async () => {
    if (number !== numWhatIfs || image !== selected || !isWhatIf()) return;
    const answer = await inspect(image.file, thresholds);
    if (number !== numWhatIfs || image !== selected) return;
    image.whatIf = answer;
    showAnswer();
  }), 150);
}

function makeSlider(value, label, onMove) {
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.01, value, ariaLabel: label });
  slider.addEventListener("input", () => {
    onMove(Number(slider.value));
    for (const image of images) image.whatIf = null;
    showAll();
    if (selected) showAnswer();
  });
  return slider;
}

function buildClasses() {
  const rows = model.classes.map(({ name, colour, label }, c) => {
    const toggle = make("input", { type: "checkbox", checked: true, ariaLabel: `Mask of class ${name}` });
    toggle.addEventListener("change", () => { viewer.visible[c] = toggle.checked; viewer.draw(); });
    const slider = makeSlider(label, `Threshold of class ${name}`, (value) => { thresholds.labels[c] = value; });
    return makeClassRow({}, [toggle], [makeSwatch(colour), name], slider, label);
  });
  const slider = makeSlider(model.gate, "Gate", (value) => { thresholds.gate = value; });
  rows.push(makeClassRow({ id: "gate" }, [], ["any (gate)"], slider, model.gate));
  $("#classes tbody").replaceChildren(...rows);
  viewer.visible = model.classes.map(() => true);
  $("#verdict-class").replaceChildren(make("option", { value: "" }, "any"),
    ...model.classes.map(({ name }) => make("option", { value: name }, name)));
}

function showClasses() {
  const levels = [...thresholds.labels, thresholds.gate];
  [...$("#classes tbody").rows].forEach((row, c) => {
    const answer = selected?.answer;
    const name = model.classes[c]?.name; // the last row is the gate
    const probability = answer ? (name === undefined ? answer.gate_probability : answer.class_probabilities[name]) : 0;
    const [bar, level] = [row.cells[2], row.cells[3]];
    bar.firstChild.value = probability;
    bar.lastChild.textContent = answer ? probability.toFixed(2) : "";
    level.firstChild.value = levels[c];
    level.lastChild.textContent = levels[c].toFixed(2);
    const isCalled = answer && answer.gate_probability >= thresholds.gate && probability >= levels[c];
    row.classList.toggle("over", Boolean(isCalled));
  });
  $("#reset-thresholds").hidden = $("#what-if").hidden = !isWhatIf();
}

// ---- verdicts

function showVerdict() {
  const verdict = selected?.answer && verdicts.get(selected.answer.digest);
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.ariaPressed = String(verdict?.verdict === button.dataset.verdict);
    button.disabled = !selected?.answer || isWhatIf();
  }
  $("#delete-verdict").hidden = !verdict;
  $("#verdict").textContent = verdict ? `✓ ${LABELS[verdict.verdict]}${verdict.class ? `, class ${verdict.class}` : ""}` +
    `${verdict.inspector ? ` (${verdict.inspector})` : ""}` : "";
}

async function saveVerdict(verdict) {
  const image = selected;
  if (!image?.answer || isWhatIf()) return;
  const { digest, size, defective, codes } = image.answer;
  const body = {
    image: image.file.name, size, verdict, defective, codes, inspector: $("#inspector").value,
    class: verdict === "agree" ? null : $("#verdict-class").value || null,
  };
  const save = () => request(`v1/verdicts/${digest}`, {
    method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const response = await save().catch(async (error) => {
    if (error.status !== 404) throw error;
    await inspect(image.file); // the service was restarted and knows only the images that it has inspected since
    return save();
  });
  verdicts.set(digest, await response.json());
  $("#verdict-class").value = "";
  showChangedVerdict(image);
}

async function deleteVerdict() {
  const image = selected;
  await request(`v1/verdicts/${image.answer.digest}`, { method: "DELETE" });
  verdicts.delete(image.answer.digest);
  showChangedVerdict(image);
}

function showChangedVerdict(image) {
  showMessage("");
  showThumbnail(image);
  showCounts();
  if (image === selected) showVerdict();
}

// ---- keyboard, mouse and downloads

function step(by) {
  const visible = images.filter((image) => !image.row.hidden || image === selected);
  const next = visible[visible.indexOf(selected) + by];
  if (next) select(next);
}

const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1),
  a: () => showErrors(() => saveVerdict("agree")), m: () => showErrors(() => saveVerdict("missed")),
  f: () => showErrors(() => saveVerdict("false_alarm")),
  "+": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5), 0: () => viewer.fit(),
};
const PANS = { ArrowRight: [80, 0], ArrowLeft: [-80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };

function onKeyDown(event) {
  if (!selected || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select, dialog *")) return;
  const toggle = /^[1-8]$/.test(event.key) && $("#classes tbody").rows[event.key - 1]?.querySelector("[type=checkbox]");
  const action = event.shiftKey && PANS[event.key] ? () => viewer.pan(...PANS[event.key])
    : toggle ? () => toggle.click() : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

const DOWNLOADS = {
  "results.csv": async () => buildResults(images, model.classes, verdicts),
  "submission.csv": async () => buildSubmission(images, model.classes),
  "model_card.html": async () => (await request("v1/card")).blob(),
  "verdicts.csv": async () => (await request("v1/verdicts.csv")).blob(),
  "labels.zip": async () => (await request("v1/labels.zip")).blob(),
};

function addListeners() {
  for (const kind of ["images", "folder"]) {
    $(`#add-${kind}`).onclick = () => $(`#${kind}`).click();
    $(`#${kind}`).onchange = (event) => { addFiles(event.target.files); event.target.value = ""; };
  }
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const entries = [...event.dataTransfer.items].filter((item) => item.kind === "file")
      .map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
    showErrors(async () => addFiles((await Promise.all(entries.map(listFiles))).flat()));
  });
  addEventListener("keydown", onKeyDown);
  addEventListener("beforeunload", (event) => { if (waiting.length) event.preventDefault(); });
  $("#opacity").oninput = (event) => { viewer.opacity = Number(event.target.value); viewer.draw(); };
  $("#reset-thresholds").onclick = () => { resetThresholds(); showAll(); showAnswer(); };
  $("#delete-verdict").onclick = () => showErrors(deleteVerdict);
  $("#inspector").value = localStorage.getItem("steel-inspector") ?? "";
  $("#inspector").onchange = (event) => localStorage.setItem("steel-inspector", event.target.value);
  const zooms = { in: () => viewer.zoom(1.5), out: () => viewer.zoom(1 / 1.5), fit: () => viewer.fit() };
  for (const button of document.querySelectorAll("[data-zoom]")) button.onclick = zooms[button.dataset.zoom];
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.onclick = () => showErrors(() => saveVerdict(button.dataset.verdict));
  }
  for (const button of document.querySelectorAll("[data-download]")) {
    const name = button.dataset.download;
    button.onclick = () => {
      $("#downloads").open = false;
      showErrors(async () => saveFile(name, await DOWNLOADS[name]()));
    };
  }
}

addListeners();
const opened = showErrors(async () => {
  model = await (await request("v1/model")).json();
  resetThresholds();
  showDrift(model);
  for (const verdict of (await (await request(`v1/verdicts?hours=${SHIFT_HOURS}`)).json()).verdicts) {
    verdicts.set(verdict.digest, verdict);
  }
  buildClasses();
  showPromises(model);
  showCounts();
});
