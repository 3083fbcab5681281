// Verdicts on images: those of the service, and those of this browser that are still to be sent.

import { request, requestPatiently } from "./service.js";
import * as store from "./store.js";

const SHIFT_HOURS = 8;
const RETRY_MS = 15_000;

const isSame = (a, b) => Boolean(a) === Boolean(b) && (!a || (a.verdict === b.verdict && a.class === b.class &&
  a.inspector === b.inspector && a.comment === b.comment));

export class Verdicts {
  #saved = new Map(); // by the digest of the image file
  #outbox = new Map(); // by digest: { digest, image, body: the verdict or null to delete it, inspector, replaces }
  #recent = new Set(); // digests of the last list of the service
  #isSending = false;
  #events;

  /**
   * Takes callbacks: `onChange(digest)` for every change; `onConflict(entry, verdict)` returns a promise of whether to
   * replace someone else's verdict; `onForgotten(digest)` has an image inspected again that the service does not know
   * since it was restarted, and returns a promise of success; `onProblem(entry, error)` if the service refuses a
   * verdict or cannot save it yet.
   */
  constructor(events) {
    this.#events = events;
  }

  /** Returns the verdict on an image or undefined; `isWaiting` is true until the service has saved it. */
  get(digest) {
    const entry = this.#outbox.get(digest);
    if (!entry) return this.#saved.get(digest);
    return entry.body ? { ...entry.body, digest, isWaiting: true } : undefined;
  }

  /** Saves a verdict, or deletes it if `body` is null: at once in this browser, and in the service once it is sent. */
  set(digest, image, body, inspector) {
    const replaces = this.#outbox.get(digest)?.replaces ?? this.#saved.get(digest)?.revision ?? 0;
    const entry = { digest, image, body, inspector, replaces };
    this.#outbox.set(digest, entry);
    this.#events.onChange(digest);
    // A browser that cannot store it still sends it.
    const stored = store.save("outbox", entry).catch(() => {});
    return stored.then(() => this.#send());
  }

  /** Sends the verdicts that a closed or reloaded page has left. */
  async sendStored() {
    for (const entry of await store.list("outbox")) {
      if (this.#outbox.has(entry.digest)) continue;
      this.#outbox.set(entry.digest, entry);
      this.#events.onChange(entry.digest);
    }
    return this.#send();
  }

  /** Returns all verdicts of the service on an image, newest first. */
  async read(digest) {
    const { entries } = await (await request(`v1/verdicts/${digest}`)).json();
    this.#update(digest, entries[0]?.verdict ? entries[0] : undefined);
    return entries;
  }

  /** Reads the latest verdicts of all inspectors. */
  async refresh() {
    const { verdicts } = await (await requestPatiently(`v1/verdicts?hours=${SHIFT_HOURS}`)).json();
    for (const verdict of verdicts) this.#update(verdict.digest, verdict);
    const digests = new Set(verdicts.map(({ digest }) => digest));
    const missing = [...this.#recent].filter((digest) => !digests.has(digest)); // deleted, or too old for the list
    this.#recent = digests;
    await Promise.all(missing.map((digest) => this.read(digest)));
  }

  #update(digest, verdict) {
    if (this.#saved.get(digest)?.revision === verdict?.revision) return;
    if (verdict) this.#saved.set(digest, verdict);
    else this.#saved.delete(digest);
    this.#events.onChange(digest);
  }

  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    try {
      for (let entry; (entry = this.#outbox.values().next().value);) await this.#sendOne(entry);
    } finally {
      this.#isSending = false;
    }
  }

  async #sendOne(entry) {
    const { digest, body, inspector, replaces } = entry;
    const query = new URLSearchParams(body ? { replaces } : { replaces, inspector });
    const headers = { "Content-Type": "application/json" };
    const options = body ? { method: "PUT", headers, body: JSON.stringify(body) } : { method: "DELETE" };
    try {
      const response = await requestPatiently(`v1/verdicts/${digest}?${query}`, options);
      this.#finish(entry, body ? await response.json() : undefined);
    } catch (error) {
      if (error.status === 404 && !body) {
        this.#finish(entry, undefined); // already deleted
      } else if (error.status === 404 && (await this.#events.onForgotten(digest))) {
        return; // the service knows the image again: the next turn sends the verdict
      } else if (error.status === 412) {
        await this.#resolve(entry);
      } else if (error.isRefusal) {
        this.#finish(entry, this.#saved.get(digest));
        this.#events.onProblem(entry, error);
      } else {
        this.#events.onProblem(entry, error);
        if (this.#outbox.get(digest) === entry) { // the others go first
          this.#outbox.delete(digest);
          this.#outbox.set(digest, entry);
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  /** Asks what to do with a verdict on an image whose verdict someone else has changed. */
  async #resolve(entry) {
    const current = (await (await requestPatiently(`v1/verdicts/${entry.digest}`)).json()).entries[0];
    const verdict = current?.verdict ? current : undefined;
    // The same verdict was sent twice, by another tab or because the first answer was lost.
    if (isSame(verdict, entry.body) || !(await this.#events.onConflict(entry, verdict))) {
      this.#finish(entry, verdict);
    } else {
      await this.#replace(entry, { ...entry, replaces: verdict?.revision ?? 0 });
    }
  }

  async #replace(entry, next) {
    if (this.#outbox.get(entry.digest) !== entry) return; // the inspector has changed the verdict meanwhile
    this.#outbox.set(entry.digest, next);
    await store.save("outbox", next).catch(() => {});
  }

  #finish(entry, verdict) {
    const { digest } = entry;
    const latest = this.#outbox.get(digest);
    if (verdict) this.#saved.set(digest, verdict);
    else this.#saved.delete(digest);
    if (latest === entry) {
      this.#outbox.delete(digest);
      store.remove("outbox", digest).catch(() => {});
    } else if (latest) {
      this.#replace(latest, { ...latest, replaces: verdict?.revision ?? 0 });
    }
    this.#events.onChange(digest);
  }
}
