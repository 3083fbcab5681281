// The tables of defects and expected performance, and the history of verdicts.

import { $, make, makeSwatch, rove } from "./dom.js";
import { describeVerdict } from "./wording.js";

const MAX_ROWS = 500; // of the table of defects

/** Shows the spots of an image, largest first. A click or Enter zooms to the spot. */
export function showDefects(spots, model, viewer) {
  spots = [...spots].sort((a, b) => b.area_pixels - a.area_pixels);
  const inMm = model.mm_per_pixel !== null;
  $("#defects thead").replaceChildren(make("tr", {}, ...["Class", inMm ? "Area (mm²)" : "Area (pixels)", "Centre (x, y)"]
    .map((text, i) => make("th", { className: i === 1 ? "number" : "" }, text))));
  $("#defects tbody").replaceChildren(...spots.slice(0, MAX_ROWS).map((spot) => {
    const { colour } = model.classes.find(({ name }) => name === spot.class);
    const area = inMm ? spot.area_mm2.toFixed(1) : spot.area_pixels.toLocaleString("en");
    const [x, y] = spot.centroid.map(Math.round);
    const zoom = () => viewer.zoomTo(spot.box);
    const row = make("tr", { onclick: zoom, title: "Zoom to this spot" },
      make("td", {}, makeSwatch(colour), spot.class), make("td", { className: "number" }, area),
      make("td", {}, `${x}, ${y}`));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") zoom(); });
    return row;
  }));
  rove([...$("#defects tbody").rows]);
  const number = `${spots.length.toLocaleString("en")} spot${spots.length === 1 ? "" : "s"}`;
  $("#defects-title").textContent = `Defects (${number}${spots.length > MAX_ROWS ? `, the ${MAX_ROWS} largest shown` : ""})`;
}

/** Shows the performance that `steel tune` expects on new images, and the false alarms of novelty. */
export function showPromises(model) {
  const promises = model.tuned?.promises ?? [];
  const novelty = model.novelty ? [make("p", {}, `Images unlike clean steel: ${model.novelty.promise}.`)] : [];
  if (!promises.length) {
    $("#promises div").replaceChildren("Unknown, because the thresholds were not tuned (see steel tune).", ...novelty);
    return;
  }
  const rows = promises.map(({ name, value, interval }) => {
    const [low, high] = interval.map((end) => end === null ? "∞" : end.toFixed(3));
    const isTooWide = low === "0.000" && ["1.000", "∞"].includes(high); // any value is possible
    return [name, value === null ? "" : value.toFixed(3), isTooWide ? "too wide to tell" : `${low} to ${high}`];
  });
  $("#promises div").replaceChildren(make("table", {}, ...[["", "expected", "95 % interval"], ...rows].map((cells) =>
    make("tr", {}, ...cells.map((cell) => make("td", {}, cell))))), ...novelty);
}

/** Shows the verdict on an image, if there is one, and which verdicts may be given. */
export function showVerdict({ answer }, verdict, isWhatIf) {
  for (const button of document.querySelectorAll("[data-verdict]")) {
    const { verdict: kind } = button.dataset;
    button.ariaPressed = String(verdict?.verdict === kind);
    button.disabled = !answer || isWhatIf || (kind === "unknown" && !answer.unknown_code);
  }
  $("#delete-verdict").hidden = $("#save-comment").hidden = !verdict || isWhatIf;
  $("#verdict").textContent = verdict ? `✓ ${describeVerdict(verdict)}` : "";
  if (document.activeElement !== $("#comment")) $("#comment").value = verdict?.comment ?? "";
}

/** Offers the new class of a verdict for the next ones, so that all inspectors spell it alike. */
export function offerNewClass({ verdict, class: label } = {}) {
  const isListed = [...$("#new-classes").children].some(({ value }) => value === label);
  if (verdict === "unknown" && label && !isListed) $("#new-classes").append(make("option", { value: label }));
}

/** Shows all verdicts on an image, newest first. */
export function showHistory(entries) {
  $("#history").hidden = !entries.length;
  $("#history summary").textContent = `History (${entries.length})`;
  $("#history ol").replaceChildren(...entries.map((entry) => make("li", {}, describeVerdict(entry))));
}

/** Shows how the latest images differ from those that the model was tuned on, if they do. */
export function showDrift({ drift }) {
  $("#drift").hidden = !drift;
  $("#drift").textContent = drift ?? "";
}
