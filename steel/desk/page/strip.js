// The strip of all images: their order, filters and counts, and which of them is selected.

import { $, make } from "./dom.js";
import { LABELS } from "./wording.js";

export const SIGNS = { defective: "●", unclear: "◐", clean: "○", unlike: "◆", unreadable: "×", failed: "!", waiting: "…" };
const sumAreas = ({ answer }) => (answer ? answer.spots.reduce((sum, spot) => sum + spot.area_pixels, 0) : -1);

export class Strip {
  #filter = "all";
  #order = "added";
  #arranged = []; // the images in the order of the strip
  #numAdded = 0;
  #source;
  images = []; // { file, row, answer, error, isRefused, whatIf: the answer at other thresholds }, in the order added
  selected = null;

  /** Takes the functions `decide(image)`, `getVerdict(image)`, `mayLeave()`, and the callback `onSelect(image)`. */
  constructor(source) {
    this.#source = source;
    $("#order").onchange = (event) => { this.#order = event.target.value; this.arrange(); };
  }

  /** Adds a file and returns its image. */
  add(file, more = {}) {
    const image = { file, answer: null, error: null, isRefused: false, whatIf: null, ...more };
    image.row = make("li", { id: `image-${this.#numAdded++}`, role: "option", title: file.name, ariaSelected: "false",
      onclick: () => this.select(image) }, make("canvas", { width: 126, height: 28 }), make("span", {}, file.name));
    this.images.push(image);
    this.#arranged.push(image);
    $("#strip").append(image.row);
    this.#showRow(image);
    return image;
  }

  /** Removes an image, and selects another one if it was selected. */
  remove(image) {
    const next = this.#find(image, 1) ?? this.#find(image, -1);
    image.row.remove();
    for (const list of [this.images, this.#arranged]) list.splice(list.indexOf(image), 1);
    if (image === this.selected) this.select(next ?? this.#arranged[0] ?? null);
  }

  select(image) {
    if (image !== this.selected && !this.#source.mayLeave()) return;
    this.selected?.row.setAttribute("aria-selected", "false");
    this.selected = image;
    if (image) {
      image.row.setAttribute("aria-selected", "true");
      $("#strip").setAttribute("aria-activedescendant", image.row.id);
      image.row.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    this.#source.onSelect(image);
  }

  /** Selects the next or the previous image that the filter shows. */
  step(by) {
    const next = this.#find(this.selected, by);
    if (next) this.select(next);
  }

  /** Selects the next image without a verdict, also one before the selected image; returns false if there is none. */
  stepToUnjudged() {
    const start = this.#arranged.indexOf(this.selected) + 1;
    const next = [...this.#arranged.slice(start), ...this.#arranged.slice(0, start)].find((image) =>
      image !== this.selected && !image.row.hidden && !image.error && !this.#source.getVerdict(image));
    if (next) this.select(next);
    return Boolean(next);
  }

  #find(image, by) {
    const visible = this.#arranged.filter((other) => !other.row.hidden || other === image);
    return visible[visible.indexOf(image) + by];
  }

  /** Puts the images in the chosen order. They keep it until the next call, so that no answer moves them. */
  arrange() {
    const keys = {
      added: () => 0,
      probability: ({ answer }) => -(answer?.gate_probability ?? -1),
      area: (image) => -sumAreas(image),
      unjudged: (image) => (this.#source.getVerdict(image) ? 1 : 0),
    };
    const key = keys[this.#order];
    this.#arranged = [...this.images].sort((a, b) => key(a) - key(b)); // a stable sort
    $("#strip").append(...this.#arranged.map(({ row }) => row));
    this.selected?.row.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Shows the decision and the verdict of one image, or of all. */
  show(image = null) {
    for (const one of image ? [image] : this.images) this.#showRow(one);
    this.#showCounts();
  }

  #showRow(image) {
    const decision = this.#source.decide(image);
    const verdict = this.#source.getVerdict(image);
    image.row.dataset.decision = decision;
    image.row.hidden = ![decision, verdict ? "judged" : "unjudged", "all"].includes(this.#filter);
    image.row.lastChild.textContent = `${SIGNS[decision]}${verdict ? " ✓" : ""} ${image.file.name}`;
  }

  #showCounts() {
    const decisions = { defective: 0, unclear: 0, unlike: 0, clean: 0, unreadable: 0, failed: 0, waiting: 0 };
    const kinds = { agree: 0, missed: 0, false_alarm: 0, unknown: 0, none: 0 };
    for (const image of this.images) {
      decisions[this.#source.decide(image)]++;
      kinds[this.#source.getVerdict(image)?.verdict ?? "none"]++;
    }
    const numInspected = this.images.length - decisions.waiting - decisions.failed;
    const isDone = numInspected + decisions.failed === this.images.length;
    $("#progress").hidden = isDone;
    Object.assign($("#progress"), { max: this.images.length || 1, value: numInspected });
    const counts = {
      inspected: numInspected, defective: decisions.defective,
      ...(decisions.unlike ? { "unlike clean steel": decisions.unlike } : {}), clean: decisions.clean + decisions.unclear,
      ...(decisions.unreadable ? { unreadable: decisions.unreadable } : {}),
      ...(decisions.failed ? { "not inspected": decisions.failed } : {}),
      "agreed": kinds.agree, "missed": kinds.missed, "false alarms": kinds.false_alarm,
      ...(kinds.unknown ? { "unknown defects": kinds.unknown } : {}), "no verdict": kinds.none,
    };
    $("#counts").replaceChildren(...Object.entries(counts).map(([name, count]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, count.toLocaleString("en")))));
    this.#showFilters(decisions);
  }

  #showFilters(decisions) {
    const names = ["all", "defective", "unclear", "unlike", "clean", "unreadable", "failed", "unjudged"]
      .filter((name) => name === this.#filter || ["all", "unjudged"].includes(name) || decisions[name]);
    const shown = [...$("#filters").children].map(({ dataset }) => dataset.filter);
    if (String(shown) !== String(names)) { // replacing the buttons would take the focus away
      $("#filters").replaceChildren(...names.map((name) => {
        const button = make("button", { onclick: () => { this.#filter = name; this.show(); } }, LABELS[name]);
        button.dataset.filter = name;
        return button;
      }));
    }
    for (const button of $("#filters").children) button.ariaPressed = String(button.dataset.filter === this.#filter);
  }
}
