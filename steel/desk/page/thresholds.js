// The thresholds: the model's own or others to try, and the table of classes that shows and changes them.

import { $, make, makeSwatch } from "./dom.js";

function makeRow(properties, toggle, name, slider, value) {
  return make("tr", properties, make("td", {}, ...toggle), make("td", { className: "name" }, ...name),
    make("td", {}, make("meter", { min: 0, max: 1 }), " ", make("output")),
    make("td", {}, slider, " ", make("output")), make("td", { className: "number" }, value.toFixed(2)));
}

export class Thresholds {
  #model;
  #onChange;

  /** Builds the table; calls back when a threshold changes. */
  constructor(model, viewer, onChange) {
    this.#model = model;
    this.#onChange = onChange;
    this.#restore();
    const rows = model.classes.map(({ name, colour, label }, c) => {
      const toggle = make("input", { type: "checkbox", checked: true, ariaLabel: `Mask of class ${name}` });
      toggle.addEventListener("change", () => { viewer.visible[c] = toggle.checked; viewer.draw(); });
      const slider = this.#makeSlider(label, `Threshold of class ${name}`, (value) => { this.labels[c] = value; });
      return makeRow({}, [toggle], [makeSwatch(colour), name], slider, label);
    });
    const slider = this.#makeSlider(model.gate, "Gate", (value) => { this.gate = value; });
    if (model.novelty) rows.push(this.#makeNoveltyRow(viewer));
    rows.push(makeRow({ id: "gate" }, [], ["any (gate)"], slider, model.gate));
    $("#classes tbody").replaceChildren(...rows);
    viewer.visible = [...model.classes, ...(model.novelty ? [model.novelty] : [])].map(() => true);
  }

  /** Makes the row of the places unlike any clean steel; the limit of novelty is fixed. */
  #makeNoveltyRow(viewer) {
    const toggle = make("input", { type: "checkbox", checked: true, ariaLabel: "Places unlike clean steel" });
    toggle.addEventListener("change", () => { viewer.visible[this.labels.length] = toggle.checked; viewer.draw(); });
    return make("tr", { id: "novelty" }, make("td", {}, toggle),
      make("td", { className: "name" }, makeSwatch(this.#model.novelty.colour), "unlike clean steel"),
      make("td", {}, "novelty ", make("output")), make("td"), make("td", { className: "number" }, "1.00"));
  }

  #restore() {
    this.gate = this.#model.gate;
    this.labels = this.#model.classes.map(({ label }) => label);
  }

  #makeSlider(value, label, onMove) {
    const slider = make("input", { type: "range", min: 0, max: 1, step: 0.01, value, ariaLabel: label });
    slider.addEventListener("input", () => {
      onMove(Number(slider.value));
      this.#onChange();
    });
    return slider;
  }

  /** Returns to the thresholds of the model. */
  reset() {
    this.#restore();
    this.#onChange();
  }

  /** True if they are not the thresholds of the model. */
  get isWhatIf() {
    return this.gate !== this.#model.gate || this.labels.some((label, c) => label !== this.#model.classes[c].label);
  }

  /** Returns the decision on an image at these thresholds, from its probabilities. */
  decide({ answer, error, isRefused }) {
    if (error) return isRefused ? "unreadable" : "failed";
    if (!answer) return "waiting";
    const isCalled = answer.gate_probability >= this.gate;
    const isOutlined = isCalled && this.#model.classes.some(({ name }, c) =>
      answer.class_probabilities[name] >= this.labels[c] && (this.isWhatIf || answer.codes[name]));
    if (isOutlined) return "defective";
    return answer.novelty >= 1 ? "unlike" : isCalled ? "unclear" : "clean";
  }

  /** Shows the thresholds, and the probabilities of an image if it has an answer. */
  show(answer) {
    const levels = [...this.labels, this.gate];
    if (this.#model.novelty) {
      $("#novelty output").textContent = answer ? answer.novelty.toFixed(2) : "";
      $("#novelty").classList.toggle("over", answer?.novelty >= 1);
    }
    [...$("#classes tbody").rows].filter(({ id }) => id !== "novelty").forEach((row, c) => {
      const name = this.#model.classes[c]?.name; // the last row is the gate
      const probability = answer ? (name === undefined ? answer.gate_probability : answer.class_probabilities[name]) : 0;
      const [bar, level] = [row.cells[2], row.cells[3]];
      bar.firstChild.value = probability;
      bar.lastChild.textContent = answer ? probability.toFixed(2) : "";
      level.firstChild.value = levels[c];
      level.lastChild.textContent = levels[c].toFixed(2);
      const isCalled = answer && answer.gate_probability >= this.gate && probability >= levels[c];
      row.classList.toggle("over", Boolean(isCalled));
    });
    $("#reset-thresholds").hidden = $("#what-if").hidden = !this.isWhatIf;
  }
}
