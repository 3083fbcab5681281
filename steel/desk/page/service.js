// Requests to the service: adds the token if one is needed, and waits while the service is busy or unreachable.

import { $, showErrors } from "./dom.js";

const TOKEN = "steel-token";
const MAX_RETRIES = 30; // while the queue is full
const MAX_FAILURES = 5; // of a request that fails although the service is reachable
const TIMEOUT_MS = 120_000; // longer than the service's own limits
const MAX_DELAY = 15; // seconds between two checks whether the service is back
const REFUSALS = [400, 409, 413, 415, 422]; // statuses that another attempt would not change

/** An answer other than success, with the service's own explanation. `status` is 0 if there was no answer. */
export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** True if the content of the request was refused, so that sending it again is useless. */
  get isRefusal() { return REFUSALS.includes(this.status); }

  /** True if the service, or the proxy in front of it, cannot be reached. */
  get isUnreachable() { return [0, 502, 504].includes(this.status); }
}

let tokenRequest = null; // one dialog for all requests that wait for the token

function askForToken() {
  tokenRequest ??= new Promise((resolve) => {
    const dialog = document.querySelector("#token-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, document.querySelector("#token").value);
      tokenRequest = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return tokenRequest;
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

let returning = null; // one check for all requests that wait for the service

async function checkUntilReachable() {
  const banner = document.querySelector("#offline");
  for (let delay = 1; ; delay = Math.min(2 * delay, MAX_DELAY)) {
    const response = await fetch("healthz", { signal: AbortSignal.timeout(5000) }).catch(() => null);
    if (response?.ok) break;
    banner.hidden = false;
    await sleep(delay);
  }
  banner.hidden = true;
  returning = null;
}

function waitUntilReachable() {
  returning ??= checkUntilReachable();
  return returning;
}

/** Sends a request and returns the response; throws a ServiceError if it failed. */
export async function request(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const response = await fetch(path, { ...options, headers, signal }).catch(() => {
      throw new ServiceError("Cannot reach the service. Check that it is running, then try again.");
    });
    if (response.ok) return response;
    if (response.status === 401) {
      await askForToken();
    } else if (response.status === 503 && attempt < MAX_RETRIES) {
      // A random delay keeps waiting requests from all retrying at the same moment.
      await sleep(Number(response.headers.get("Retry-After") ?? 1) * (0.5 + Math.random()));
    } else {
      const body = await response.json().catch(() => ({}));
      throw new ServiceError(body.detail ?? `The service answered with status ${response.status}.`, response.status);
    }
  }
}

/** Sends a request, and again whenever the service has become reachable; throws a ServiceError if it failed. */
export async function requestPatiently(path, options = {}) {
  for (let numFailures = 1; ; numFailures++) {
    try {
      return await request(path, options);
    } catch (error) {
      if (!error.isUnreachable || numFailures === MAX_FAILURES) throw error;
    }
    await waitUntilReachable();
  }
}

/** Inspects a file, at other thresholds than the model's if given, and returns the service's answer. */
export async function inspect(file, thresholds = null) {
  const query = new URLSearchParams({ name: file.name });
  if (thresholds) {
    query.set("gate", thresholds.gate);
    for (const label of thresholds.labels) query.append("label", label);
  }
  // Without this, a file that was moved or deleted on disk would look like an unreachable service.
  const body = await file.arrayBuffer().catch(() => {
    throw new ServiceError("This browser can no longer read the file. Add it again.", 400);
  });
  const response = await requestPatiently(`v1/inspect?${query}`, { method: "POST", body });
  return (await response.json()).images[0];
}

const PATHS = { "verdicts.csv": "v1/verdicts.csv", "labels.zip": "v1/labels.zip", "model_card.html": "v1/card" };

/** Connects the buttons for downloads: files of the service, and those that functions of the page build. */
export function listenForDownloads(builders) {
  for (const button of document.querySelectorAll("[data-download]")) {
    const name = button.dataset.download;
    button.onclick = () => showErrors(async () => {
      $("#downloads").open = false;
      saveFile(name, await (builders[name]?.() ?? (await request(PATHS[name])).blob()));
    });
  }
}

/** Offers a file to the user as a download. */
function saveFile(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
