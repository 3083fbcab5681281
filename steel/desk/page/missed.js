// The form in which an inspector names the class of a missed defect and outlines it.

import { $, make } from "./dom.js";
import { Marking } from "./marking.js";

export class MissedForm {
  #viewer;
  #classes;
  #marking = null;
  #onSave;

  /** Calls back with the class, or null if several were outlined, and the run-length code of each outlined class. */
  constructor(viewer, classes, onSave) {
    this.#viewer = viewer;
    this.#classes = classes;
    this.#onSave = onSave;
    $("#missed-class").replaceChildren(make("option", { value: "" }, "choose"),
      ...classes.map(({ name }) => make("option", { value: name }, name)));
    $("#missed-class").onchange = () => this.#choose();
    $("#brush").oninput = () => this.#choose();
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.onclick = () => this.#choose(button.dataset.tool);
    }
    $("#undo").onclick = () => this.#marking.undo();
    $("#add-box").onclick = () => this.#marking.addBox(
      ["left", "top", "width", "height"].map((name) => $(`#box-${name}`).valueAsNumber || 0));
    $("#box").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !event.target.matches("input")) return;
      event.preventDefault(); // would save without the box
      $("#add-box").click();
    });
    $("#missed").onsubmit = (event) => { event.preventDefault(); this.#save(); };
    $("#cancel-missed").onclick = () => this.stop();
  }

  get isOpen() { return this.#marking !== null; }

  /** True if closing the form would lose an outline. */
  get isDrawn() { return this.isOpen && !this.#marking.isEmpty; }

  /** Opens the form for an image of height and width `size`. */
  start(size) {
    this.#marking = new Marking(size, () => this.#show());
    $("#missed").hidden = false;
    $("#missed-class").value = this.#classes.length === 1 ? this.#classes[0].name : "";
    this.#choose("brush");
    this.#show();
    $("#missed-class").focus();
  }

  /** Closes the form without saving. */
  stop() {
    if (!this.isOpen) return;
    this.#marking = this.#viewer.pen = null;
    $("#missed").hidden = true;
    this.#viewer.draw();
    $("#picture").focus();
  }

  #choose(tool = this.#marking.tool) {
    const c = this.#classes.findIndex(({ name }) => name === $("#missed-class").value);
    Object.assign(this.#marking, {
      tool, brushWidth: $("#brush").valueAsNumber, classIndex: c, colour: this.#classes[c]?.colour,
    });
    this.#viewer.pen = c < 0 ? null : this.#marking; // an outline needs a class
    $("#add-box").disabled = c < 0;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.ariaPressed = String(button.dataset.tool === tool);
    }
    $("#missed-hint").textContent = c < 0 ? "Choose the class, then outline the defect on the image."
      : "Outline the defect on the image, then save. A class chosen afterwards adds a defect of that class.";
  }

  #show() {
    $("#undo").disabled = this.#marking.isEmpty;
    $("#save-missed").textContent = this.#marking.isEmpty ? "Save without outline" : "Save";
    this.#viewer.draw();
  }

  #save() {
    const codes = this.#marking.buildCodes(this.#classes.length);
    const marks = Object.fromEntries(this.#classes.map(({ name }, c) => [name, codes[c]]).filter(([, code]) => code));
    const names = Object.keys(marks);
    const label = names.length > 1 ? null : names[0] ?? $("#missed-class").value;
    this.stop();
    this.#onSave(label, marks);
  }
}
