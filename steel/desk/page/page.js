// The inspection desk: adds images, shows decisions, and takes verdicts.

import { $, ask, make, showErrors, showMessage } from "./dom.js";
import { decode, listenForFiles } from "./files.js";
import { listenForDisplay } from "./levels.js";
import { MissedForm } from "./missed.js";
import { offerNewClass, showDefects, showDrift, showHistory, showPromises, showVerdict } from "./panels.js";
import { Queue } from "./queue.js";
import { inspect, listenForDownloads, request, requestPatiently } from "./service.js";
import * as store from "./store.js";
import { SIGNS, Strip } from "./strip.js";
import { buildResults, buildSubmission } from "./tables.js";
import { Thresholds } from "./thresholds.js";
import { Verdicts } from "./verdicts.js";
import { Viewer } from "./viewer.js";
import {
  askAboutConflict, askToReplace, describeDecision, describePicture, describeVerdict, LABELS,
} from "./wording.js";

const POLL_MS = 15_000; // between two looks at the verdicts of other inspectors
const FILE_NAMES = /\.(jpe?g|png|bmp|tiff?)$/i;

const viewer = new Viewer($("#picture"));
const verdicts = new Verdicts({
  onChange: showChangedVerdict, onConflict: askAboutConflict, onForgotten: inspectAgain, onProblem: showProblem,
});
const getVerdict = ({ answer }) => answer && verdicts.get(answer.digest);
const strip = new Strip({ decide: (image) => thresholds.decide(image), getVerdict, mayLeave, onSelect: show });
let model, thresholds, queue, missed, numWhatIfs = 0;

// ---- adding and inspecting images

const identify = ({ name, size, lastModified }) => `${name} ${size} ${lastModified}`;

async function addFiles(files) {
  await opened;
  const supported = files.filter((file) => FILE_NAMES.test(file.name)).sort((a, b) => a.name.localeCompare(b.name));
  const known = new Set(strip.images.map(({ file }) => identify(file)));
  const fresh = supported.filter((file) => !known.has(identify(file)));
  const numKnown = supported.length - fresh.length;
  showMessage(!supported.length ? "No images found. File names must end in .jpg, .jpeg, .png, .bmp, .tif or .tiff."
    : numKnown ? `Already on this page: ${numKnown} of these images.` : "", !supported.length);
  for (const file of fresh) {
    const image = strip.add(file);
    image.stored = store.save("images", { file, answer: null })
      .then((id) => (image.id = id), () => showMessage("This browser cannot keep the images: they are lost when the page is reloaded."));
    queue.add(image);
  }
  showImages();
}

function addStored(record) {
  const answer = queue.readAnswer(record);
  queue.add(strip.add(record.file, { id: record.id, stored: Promise.resolve(record.id), answer }));
}

function showImages() {
  $("#empty").hidden = strip.images.length > 0;
  $("#desk").hidden = !strip.images.length;
  if (!strip.selected && strip.images.length) strip.select(strip.images[0]);
  strip.show();
}

async function finishInspection(image) {
  if (!strip.images.includes(image)) return; // removed meanwhile
  const isTwin = (other) => other !== image && other.answer?.digest === image.answer?.digest;
  const twin = image.answer && strip.images.find(isTwin);
  if (twin) {
    showMessage(`${image.file.name} is the same file as ${twin.file.name}, so it is shown once.`, false);
    strip.remove(image);
    if (image.id) store.remove("images", image.id).catch(() => {});
    strip.show();
    return;
  }
  strip.show(image);
  if (image === strip.selected) showAnswer();
  else if (image.answer && !getVerdict(image)) await verdicts.read(image.answer.digest).catch(() => {});
}

function retry() {
  for (const image of strip.images.filter(({ error, isRefused }) => error && !isRefused)) {
    image.error = null;
    queue.add(image);
  }
  strip.show();
  showAnswer();
}

async function removeImages() {
  if (!(await ask("Remove all images from this page? Their verdicts are kept.", "Remove", "Cancel"))) return;
  await store.clear("images").catch(() => {});
  forgetImages();
}

function forgetImages() {
  for (const image of [...strip.images]) if (image !== strip.selected) strip.remove(image);
  if (strip.selected) strip.remove(strip.selected);
  showImages();
}

/** Takes over what another tab has changed. */
async function followOtherTab(name, key) {
  await opened;
  const entry = key === undefined ? undefined : await store.read(name, key);
  if (name === "outbox") {
    if (!entry) await verdicts.read(key);
    return;
  }
  if (key === undefined) return forgetImages();
  const image = strip.images.find(({ id }) => id === key);
  if (!entry && image) strip.remove(image);
  else if (entry && !image) addStored(entry);
  else if (image && !image.answer) image.answer = queue.readAnswer(entry);
  showImages();
  if (image && image === strip.selected) showAnswer();
}

// ---- the selected image

function mayLeave() {
  return !missed.isDrawn || confirm("Discard the outline of the missed defect?");
}

async function show(image) {
  missed.stop();
  if (!image) return;
  $("#name").textContent = image.file.name;
  $("#comment").value = "";
  showHistory([]);
  const bitmap = await decode(image.file).catch(() => null);
  if (image !== strip.selected) return;
  if (!bitmap && image.answer) showMessage("Your browser cannot display this file. Only its masks are shown.");
  viewer.show(bitmap, bitmap ? [bitmap.height, bitmap.width] : image.answer?.size ?? [256, 1600]);
  showAnswer();
}

/** Shows the result for the selected image; at other thresholds it comes from another request. */
function showAnswer() {
  const image = strip.selected;
  const answer = thresholds.isWhatIf ? image.whatIf : image.answer;
  const decision = thresholds.decide(image);
  const text = image.answer ? describeDecision(decision, image.answer)
    : image.error && !image.isRefused ? `${LABELS.failed}: ${image.error}` : image.error ?? LABELS.waiting;
  $("#decision").className = decision;
  $("#decision").textContent = image.answer ? `${SIGNS[decision]} ${text}` : text;
  $("#retry").hidden = decision !== "failed";
  $("#picture").ariaLabel = describePicture(image.file.name, image.answer?.size, text, answer?.spots ?? []);
  thresholds.show(image.answer);
  showDefects(answer?.spots ?? [], model, viewer);
  showVerdict(image, getVerdict(image), thresholds.isWhatIf);
  showMasks(answer);
  if (thresholds.isWhatIf && !answer && image.answer) inspectWhatIf();
  if (image.answer) readHistory(image).catch(() => {});
}

function showMasks(answer) {
  const marks = getVerdict(strip.selected)?.marks ?? {};
  const { classes, novelty } = model;
  const colours = [...classes, ...(novelty ? [novelty] : [])].map(({ colour }) => colour);
  const layers = [[answer?.codes ?? {}, answer?.unknown_code ?? ""], [marks, ""]].flatMap(([codes, unknown]) =>
    [...classes.map(({ name }) => codes[name] ?? ""), ...(novelty ? [unknown] : [])]);
  viewer.setMasks(layers, [...colours, ...colours]);
}

function inspectWhatIf() {
  const image = strip.selected, number = ++numWhatIfs;
  const isCurrent = () => number === numWhatIfs && image === strip.selected && thresholds.isWhatIf;
  // A moving slider sends many values; send a request only once it rests.
  setTimeout(() => showErrors(async () => {
    if (!isCurrent()) return;
    const answer = await inspect(image.file, thresholds);
    if (!isCurrent()) return;
    image.whatIf = answer;
    showAnswer();
  }), 150);
}

function showThresholds() {
  for (const image of strip.images) image.whatIf = null;
  strip.show();
  if (strip.selected) showAnswer();
}

// ---- verdicts

async function readHistory(image) {
  const entries = await verdicts.read(image.answer.digest);
  if (image === strip.selected) showHistory(entries);
}

function showChangedVerdict(digest) {
  offerNewClass(verdicts.get(digest));
  const image = strip.images.find(({ answer }) => answer?.digest === digest);
  if (!image) return;
  strip.show(image);
  if (image !== strip.selected) return;
  showVerdict(image, getVerdict(image), thresholds.isWhatIf);
  showMasks(thresholds.isWhatIf ? image.whatIf : image.answer);
  if (!getVerdict(image)?.isWaiting) readHistory(image).catch(() => {});
}

/** Returns the inspector's name, or "" after asking for it. */
function requireInspector() {
  const name = $("#inspector").value.trim();
  if (!name) {
    showMessage("Enter your name next to “Inspector” first, because verdicts are signed.");
    $("#inspector").focus();
  }
  return name;
}

async function inspectAgain(digest) {
  const image = strip.images.find(({ answer }) => answer?.digest === digest);
  if (image) await inspect(image.file);
  return Boolean(image);
}

function showProblem({ image }, error) {
  showMessage(error.isRefusal ? `Your verdict on ${image} was refused: ${error.message}`
    : `Your verdict on ${image} is kept and will be sent. ${error.message}`);
}

/** Saves a verdict, or deletes it if `verdict` is null, and shows the next image without a verdict. */
async function judge(verdict, label = null, marks = {}, { stays = false } = {}) {
  const image = strip.selected;
  const inspector = image?.answer && !thresholds.isWhatIf && requireInspector();
  if (!inspector) return;
  const comment = $("#comment").value.trim();
  const earlier = getVerdict(image);
  const mine = verdict ? describeVerdict({ verdict, class: label, marks, comment }) : "deleted";
  if (earlier && earlier.inspector !== inspector && !(await askToReplace(image.file.name, earlier, mine))) return;
  const { digest, size, defective, codes, unknown_code } = image.answer;
  const found = { image: image.file.name, size, defective, codes, unknown_code };
  const body = verdict && { ...found, verdict, class: label, marks, inspector, comment };
  verdicts.set(digest, image.file.name, body, inspector);
  $("#verdict-class").value = $("#new-class").value = "";
  $("#comment").blur();
  const isLast = !stays && image === strip.selected && !strip.stepToUnjudged();
  showMessage(`${image.file.name}: ${mine}.${isLast ? " No other image is without a verdict." : ""}`, false);
}

function judgeMissed() {
  const image = strip.selected;
  if (image?.answer && !thresholds.isWhatIf && requireInspector()) missed.start(image.answer.size);
}

async function judgeUnknown() {
  if (!strip.selected?.answer?.unknown_code) return;
  await judge("unknown", $("#new-class").value.trim() || null);
}

function saveComment() {
  const { verdict, class: label, marks } = getVerdict(strip.selected);
  return judge(verdict, label, marks, { stays: true });
}

const JUDGE = {
  agree: () => judge("agree"), missed: async () => judgeMissed(),
  false_alarm: () => judge("false_alarm", $("#verdict-class").value || null), unknown: judgeUnknown,
};

let isPolling = false;

async function poll() {
  if (isPolling || document.hidden || !strip.images.length) return;
  isPolling = true;
  await Promise.allSettled([verdicts.refresh(), verdicts.sendStored()]);
  isPolling = false;
}

// ---- keyboard and mouse

const KEYS = {
  ArrowRight: () => strip.step(1), ArrowLeft: () => strip.step(-1),
  a: () => showErrors(JUDGE.agree), m: () => showErrors(JUDGE.missed), f: () => showErrors(JUDGE.false_alarm),
  u: () => showErrors(JUDGE.unknown),
};
const VIEW_KEYS = { "+": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5), 0: () => viewer.fit() };
const PANS = { ArrowRight: [80, 0], ArrowLeft: [-80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };

function onKeyDown(event) {
  if (!strip.selected || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && !event.target.closest("dialog")) missed.stop();
  if (event.target.matches("input:not([type=checkbox]), select, dialog *")) return;
  const toggle = /^[1-8]$/.test(event.key) && $("#classes tbody").rows[event.key - 1]?.querySelector("[type=checkbox]");
  const keys = missed.isOpen ? VIEW_KEYS : { ...KEYS, ...VIEW_KEYS }; // while drawing, no other image is shown
  const action = event.shiftKey && PANS[event.key] ? () => viewer.pan(...PANS[event.key])
    : toggle ? () => toggle.click() : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function addButtonListeners() {
  listenForDownloads({
    "results.csv": () => buildResults(strip.images, model, verdicts),
    "submission.csv": () => buildSubmission(strip.images, model.classes),
  });
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.onclick = () => showErrors(JUDGE[button.dataset.verdict]);
  }
  const zooms = { in: VIEW_KEYS["+"], out: VIEW_KEYS["-"], fit: VIEW_KEYS[0] };
  for (const button of document.querySelectorAll("[data-zoom]")) button.onclick = zooms[button.dataset.zoom];
  $("#remove-images").onclick = () => showErrors(removeImages);
  $("#reset-thresholds").onclick = () => thresholds.reset();
  $("#retry").onclick = retry;
  $("#save-comment").onclick = () => showErrors(saveComment);
  $("#delete-verdict").onclick = () => showErrors(() => judge(null, null, {}, { stays: true }));
}

function addListeners() {
  addButtonListeners();
  listenForFiles((files) => showErrors(async () => addFiles(await files)));
  listenForDisplay(viewer);
  addEventListener("keydown", onKeyDown);
  document.addEventListener("visibilitychange", poll);
  setInterval(poll, POLL_MS);
  store.watch((name, key) => followOtherTab(name, key).catch(() => {}));
  $("#inspector").value = localStorage.getItem("steel-inspector") ?? "";
  $("#inspector").onchange = (event) => {
    localStorage.setItem("steel-inspector", event.target.value.trim());
    showMessage("");
  };
}

addListeners();
const opened = showErrors(async () => {
  model = await (await requestPatiently("v1/model")).json();
  thresholds = new Thresholds(model, viewer, showThresholds);
  missed = new MissedForm(viewer, model.classes, (label, marks) => showErrors(() => judge("missed", label, marks)));
  queue = new Queue(model, {
    onInspected: finishInspection,
    onIdle: () => showErrors(async () => {
      strip.arrange();
      showDrift(await (await request("v1/model")).json());
    }),
  });
  $("#verdict-class").replaceChildren(make("option", { value: "" }, "any"),
    ...model.classes.map(({ name }) => make("option", { value: name }, name)));
  for (const part of document.querySelectorAll("[data-novelty]")) part.hidden = !model.novelty;
  showDrift(model);
  showPromises(model);
  // Without a store, the page works until it is closed.
  for (const record of await store.list("images").catch(() => [])) addStored(record);
  showImages();
  verdicts.refresh().catch(() => {});
  verdicts.sendStored().catch(() => {});
});
