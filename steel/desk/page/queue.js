// The images that wait to be inspected, and the answers that this browser keeps.

import { drawThumbnail } from "./files.js";
import { inspect } from "./service.js";
import * as store from "./store.js";

const MAX_REQUESTS = 4; // in parallel; the service combines them into batches

export class Queue {
  #waiting = [];
  #isRunning = false;
  #model;
  #events;

  /** Takes the model of the service, and the callbacks `onInspected(image)` and `onIdle()`. */
  constructor(model, events) {
    this.#model = JSON.stringify({ ...model, drift: null });
    this.#events = events;
  }

  /** Returns the answer of a stored image, or null if it has none or another model gave it. */
  readAnswer(record) {
    return record?.model === this.#model ? record.answer : null;
  }

  /** Adds an image; `image.stored` is a promise of its key in the store, or of undefined. */
  async add(image) {
    this.#waiting.push(image);
    if (this.#isRunning) return;
    this.#isRunning = true;
    await Promise.resolve(); // so that all images that are added together wait before the first is taken
    while (this.#waiting.length) {
      await store.exclusively(() => Promise.all(Array.from({ length: MAX_REQUESTS }, () => this.#work())));
    }
    this.#isRunning = false;
    this.#events.onIdle();
  }

  async #work() {
    for (let image; (image = this.#waiting.shift());) {
      const id = await image.stored;
      await Promise.all([this.#inspect(image, id), drawThumbnail(image.file, image.row.firstChild)]);
      await this.#events.onInspected(image);
    }
  }

  async #inspect(image, id) {
    if (image.answer) return;
    try {
      const record = id && await store.read("images", id).catch(() => null); // another tab may have inspected it
      const known = this.readAnswer(record);
      image.answer = known ?? await inspect(image.file);
      image.error = null;
      if (id && !known) await store.save("images", { id, file: image.file, answer: image.answer, model: this.#model });
    } catch (error) {
      if (image.answer) return; // only the browser's copy failed
      Object.assign(image, { error: error.message, isRefused: Boolean(error.isRefusal) });
    }
  }
}
